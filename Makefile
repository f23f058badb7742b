# Everything a fresh machine needs; `make help` lists it. Paths are relative because the folder's name may hold spaces.
.DEFAULT_GOAL := help
.PHONY: help run test test-full lint contract bench bench-peers chaos soak screenshots clean
PY := .venv/bin/python
# Most tests wait for processes, so more run at a time than there are cores; a file's tests stay together.
SPREAD := -n 3 --dist loadfile
PAYLOADS := .cache/octokit/package/package.json
AXE := .cache/axe/package/axe.min.js
VERIFIER := .cache/standardwebhooks/node_modules/standardwebhooks/package.json

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

run: ## install what is missing, then start everything; Ctrl-C stops it (ORQO_PORT=8000, PYTHON=python3.12, … choose)
	@sh setup.sh $(if $(filter postgresql%,$(DATABASE_URL)),requirements-postgresql.txt,requirements.txt) && exec $(PY) -m orqo serve

test: $(PAYLOADS) $(AXE) $(VERIFIER) ## the test set (ARGS="tests/test_web.py -k drain" chooses; DB=postgresql: its boxes on PostgreSQL)
	@sh setup.sh requirements-dev.txt && exec env ORQO_TEST_DB="$(DB)" $(PY) -m pytest -m "not full" $(SPREAD) $(ARGS)

test-full: $(PAYLOADS) $(AXE) $(VERIFIER) ## the long versions of the property, chaos and set-up tests too
	@sh setup.sh requirements-dev.txt && exec env ORQO_TEST_FULL=1 ORQO_TEST_DB="$(DB)" $(PY) -m pytest $(ARGS)

lint: ## ruff and mypy
	@sh setup.sh requirements-dev.txt && $(PY) -m ruff check . && $(PY) -m ruff format --check . && exec $(PY) -m mypy

contract: ## hold ORQO's contract against any base URL (URL=http://… TOKEN=orqo_… WORKFLOW=1 HOOK=<a webhook's token>)
	@sh setup.sh requirements-dev.txt && exec env CONTRACT_URL="$(URL)" CONTRACT_TOKEN="$(TOKEN)" CONTRACT_WORKFLOW="$(WORKFLOW)" \
	CONTRACT_HOOK="$(HOOK)" $(PY) -m pytest -v tests/contract/contract.py $(ARGS)

bench: ## the figures of bench/RESULTS.md, some minutes; ARGS="accept --rounds 5", ARGS=pages, … takes one measurement
	@sh setup.sh requirements-bench.txt && exec $(PY) -m bench $(ARGS)

bench-peers: ## the same load on adnanh/webhook and Node-RED, where they are installed
	@sh setup.sh requirements-bench.txt && exec $(PY) -m bench peers $(ARGS)

chaos: ## kill and freeze everything under load, then check what was promised (RUNS=1000 SEED=7 DB=postgresql HOSTS=5)
	@sh setup.sh requirements-dev.txt && exec env PYTHONPATH=tests RUNS="$(RUNS)" SEED="$(SEED)" HOSTS="$(HOSTS)" ORQO_TEST_DB="$(DB)" $(PY) -m chaos

soak: ## a steady load on the whole service; memory, disk and latency at its end beside its beginning (MINUTES=30 RATE=10 DB=postgresql)
	@sh setup.sh requirements-dev.txt && exec $(PY) -m bench soak --minutes "$(or $(MINUTES),30)" --rate "$(or $(RATE),10)" \
	$(if $(filter postgresql,$(DB)),--postgresql)

screenshots: ## pictures of every page into .cache/screenshots, light, dark and on a phone; the README's into docs
	@sh setup.sh requirements-dev.txt && exec $(PY) tests/browser/screenshots.py .cache/screenshots docs

clean: ## remove what was built; var, the data folder, stays
	@rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# GitHub's published payloads, for one test; without npm or a network that test is skipped and says so.
$(PAYLOADS):
	@mkdir -p .cache/octokit && cd .cache/octokit && \
	npm pack --silent @octokit/webhooks-examples@7.6.1 >/dev/null 2>&1 && \
	tar -xzf octokit-webhooks-examples-7.6.1.tgz || echo "orqo: no example payloads from npm: their test is skipped"

# What looks at the pages for people who see or move little; without npm or a network those tests are skipped and say so.
$(AXE):
	@mkdir -p .cache/axe && cd .cache/axe && \
	npm pack --silent axe-core@4.14.1 >/dev/null 2>&1 && \
	tar -xzf axe-core-4.14.1.tgz || echo "orqo: no axe-core from npm: its tests are skipped"

# The signature's own library for JavaScript, which is held against what we send; without npm that test is skipped.
$(VERIFIER):
	@mkdir -p .cache/standardwebhooks && cd .cache/standardwebhooks && \
	npm install --silent --no-save --ignore-scripts --prefix . standardwebhooks@1.1.1 >/dev/null 2>&1 || \
	echo "orqo: no standardwebhooks from npm: its test is skipped"
