# The platform on this machine, under supervisor; included by the Makefile.
#   make up    make status    make logs [S=registry]    make down
# Ports and data folder: the ANTHESIS_* variables in docs/architecture.md, and ANTHESIS_PLAYGROUND_PORT.
PYTHON ?= .venv/bin/python

.PHONY: up down logs status

up:
	@$(PYTHON) -m infra.local up

down:
	@$(PYTHON) -m infra.local down

logs:
	@$(PYTHON) -m infra.local logs $(S)

status:
	@$(PYTHON) -m infra.local status
