"""Generated from protos/anthesis/v1 by `make stubs`; do not edit."""
