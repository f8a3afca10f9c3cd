# The platform on this machine, under supervisor; included by the Makefile.
# Ports and data folder: the ANTHESIS_* variables in docs/architecture.md, and ANTHESIS_PLAYGROUND_PORT.
BIN ?= .venv/bin

.PHONY: up down logs status

up: setup ## start the platform and wait until it answers
	@$(BIN)/python -m infra.local up

down: ## stop it; its state stays
	@$(BIN)/python -m infra.local down

logs: ## follow the logs; S=registry: of one service
	@$(BIN)/python -m infra.local logs $(S)

status: ## what runs and what answers
	@$(BIN)/python -m infra.local status
