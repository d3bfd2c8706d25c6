# Every stage is a subcommand of `mp4sr`. The targets use `mp4sr run`, which first brings the earlier stages up to date.
# PIPELINE=pipelines/x.toml   the pipeline
# Values may contain spaces and quotes. Switches (QUIET, CUDA, MPI, QUICK) accept 1, true, yes, on and 0, false, no, off.
# DATA=folder                 the folder of the raw files, instead of the pipeline's dataset.data
# RUN=name                    the run, instead of the pipeline's run.name
# ARTIFACTS=folder            the folder that everything is written to, instead of artifacts
# SET='a.b=1 c.d=["x", "y"]'  sets keys, instead of their values in the pipeline; spaces within quotes and brackets belong to the value
# QUIET=1                     prints only results and errors
# CUDA=1                      also builds for NVIDIA GPUs (run.device=cuda:0), which requires the CUDA toolkit
# MPI=1                       also builds training by several processes (docs/scale.md), which requires Open MPI or MPICH, and libclang
# For tables, figures and studies:
# QUICK=1                     makes a smoke run with few events and epochs, which takes minutes
# SEEDS=n                     the number of runs per row; by default 3, 5 for fig3, 1 with QUICK
# JOBS=n                      the number of runs to train at once

PIPELINE ?= pipelines/sample.toml
BIN := $(or $(CARGO_TARGET_DIR),target)/release
MP4SR := $(BIN)/mp4sr
# Quotes a value as one word of the shell, including its spaces and quotes.
quoted = '$(subst ','\'',$(1))'
# The value of a switch; empty if it is 0, false, no, off or empty.
on = $(filter-out 0 false no off,$(1))
artifacts_flag = $(if $(ARTIFACTS),--artifacts $(call quoted,$(ARTIFACTS)))
quiet_flag = $(if $(call on,$(QUIET)),--quiet)
FLAGS = --pipeline $(call quoted,$(PIPELINE)) $(if $(DATA),--data $(call quoted,$(DATA))) \
        $(if $(RUN),--run $(call quoted,$(RUN))) $(artifacts_flag) $(quiet_flag) $(SET_FLAG)
SET_FLAG = $(if $(SET),--set-all $(call quoted,$(SET)))

FEATURES := $(if $(call on,$(CUDA)),--features mp4sr-ops/cuda) $(if $(call on,$(MPI)),--features mp4sr-train/mpi)
# Checks whether the code for MPI can be compiled. It requires the library's compiler wrapper, and libclang for the bindings.
HAS_MPI = command -v "$${MPICC:-mpicc}" > /dev/null && { [ -n "$$LIBCLANG_PATH" ] || ls /usr/lib/llvm*/lib/libclang.so* /usr/lib/llvm*/lib/libclang-[0-9]*.so* /usr/lib/*/libclang-[0-9]*.so* 2> /dev/null | grep -q .; }

# The shell splits WITH, UNSEEN, TEXT, IMAGE and RUNS at spaces, so a path with a space must be quoted within the value.
STUDY_FLAGS = $(FLAGS) $(if $(call on,$(QUICK)),--quick) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS)) \
              $(if $(WITH),--with $(WITH)) $(if $(UNSEEN),--unseen $(UNSEEN)) \
              $(if $(RESNET),--resnet $(call quoted,$(RESNET))) $(if $(TEXT),--text-encoder $(TEXT)) \
              $(if $(IMAGE),--image-encoder $(IMAGE))
STUDIES := table1 table2 table3 table4 table5 table6 fig3 fig4 fig5 fig6 fig7 fig8 cold-start study-mixup \
           study-image-features study-noise study-encoders

.DEFAULT_GOAL := help
.PHONY: help build export sample cache-stats cache-prune download preprocess extract pretrain finetune evaluate recommend report all demo test test-fast check format-check \
        lint lint-cuda lint-mpi test-mpi docs deny unused circles clean-artifacts bench bench-growth bench-peer bench-baselines bench-serve bench-soak bench-cuda bench-extract compare search larger $(STUDIES)

help: ## List every target
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "%-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the program
	@cargo build --release --workspace --bins --quiet $(FEATURES)

sample: build ## Generate the sample world
	@$(MP4SR) sample --out $(call quoted,$(or $(ARTIFACTS),artifacts)/sample/raw)

download: build ## Download raw files and the images of items to the data folder
	@$(MP4SR) download $(FLAGS)

preprocess: ## Turn raw files into artifacts/<dataset>/dataset
extract: ## Turn sentences, images and sounds into artifacts/<dataset>/features
pretrain: ## Pre-train the model, if it has a pre-training phase
finetune: ## Fine-tune on the next item
evaluate: ## Rank every user's next item and print R@K and N@K
recommend: ## List the best items for every user
report: ## Write one page with tables, curves and recommended items
preprocess extract pretrain finetune evaluate recommend report: build
	@$(MP4SR) run --until $@ $(FLAGS)

# FORMAT="a,b"   the formats: lists-parquet, vectors-npy, recbole, huggingface, ... (mp4sr export --help)
# OUT=folder     the folder to write, instead of `export` in the folder of the run
# TOP=k          the length of a list
export: build ## Export lists, vectors, datasets or a model folder of a run for other programs
	@$(MP4SR) run --until finetune $(FLAGS)
	@$(MP4SR) export $(FLAGS) --format $(call quoted,$(or $(FORMAT),lists-parquet)) $(if $(OUT),--out $(call quoted,$(OUT))) \
	    $(if $(TOP),--top $(TOP))

all: report ## Run every stage, in order

cache-stats: build ## List the cached vectors of encoders, for all datasets
	@$(MP4SR) cache stats $(artifacts_flag)

# DAYS=30   the number of days without use
cache-prune: build ## Remove vectors of encoders that were not used for DAYS days
	@$(MP4SR) cache prune --unused-days $(or $(DAYS),30) $(artifacts_flag)

# RUNS="a b NAME=c,d"   the evaluated runs; NAME=c,d groups runs that differ only by their seed
compare: build ## Compare evaluated runs, with tests of their differences
	@$(MP4SR) compare $(FLAGS) $(RUNS)

# GRID="a.b=1,2 c.d=x,y"   the grid, of which each combination is a run; by default, the own grid of MODEL, or of the pipeline's model
# NAME=name                the name of the search
search: build ## Train a grid of settings and sort the runs by their validation metric
	@$(MP4SR) search $(FLAGS) $(if $(MODEL),--set 'model.name="$(MODEL)"') $(if $(GRID),--grids $(call quoted,$(GRID))) \
	    $(if $(NAME),--name $(call quoted,$(NAME))) \
	    $(if $(JOBS),--jobs $(JOBS))

table1: ## Statistics of the dataset (WITH="..." further pipelines)
table2: ## All baselines, MP4SR with and without pre-training
table3: ## Cold items, as in the paper
# RESNET=folder or name   the ResNet for the row `ResNet`
table4: ## Ablations of MP4SR
# WITH="pipelines/b.toml ..."     further pipelines to pre-train on
# UNSEEN="pipelines/c.toml ..."   pipelines to fine-tune on without pre-training on them
table5: ## Pre-training on several datasets
table6: ## One modality and all
fig3: ## Test loss against training loss
fig4: ## Impact of lambda
fig5: ## Impact of N, the words per image
fig6: ## Impact of O, the experts
fig7: ## Impact of rho, sequence dropout
fig8: ## Users by the length of their sequence
cold-start: ## Cold items, items never trained on, users with one to three events
study-mixup: ## Mixup with a fixed swap probability
study-image-features: ## Image features: CLIP's words, CLIP's vectors, ResNet's vectors, or none
study-noise: ## Items that lose features or get those of others
# TEXT="model model"    text encoders, each instead of the pipeline's
# IMAGE="model model"   image encoders, each instead of the pipeline's image features
study-encoders: ## Text and image encoders side by side
$(STUDIES): %: build
	@$(MP4SR) study $* $(STUDY_FLAGS)

larger: table5 ## The same as table5

demo: build ## Run all stages on the built-in sample world, with three models side by side
	@$(MP4SR) demo $(artifacts_flag) $(quiet_flag)

# nextest, if it is installed, reports the time of each test. It does not run the examples in the documentation.
test: build ## Run all tests
	@if cargo nextest --version > /dev/null 2>&1; then \
	    cargo nextest run --release --workspace $(FEATURES) && cargo test --release --workspace --doc --quiet $(FEATURES); \
	else \
	    cargo test --release --workspace $(FEATURES); \
	fi

test-fast: ## Run the unit tests: under a minute once they are built
	@cargo test --release --workspace --lib --quiet

format-check: ## Check the formatting
	@cargo fmt --all --check

lint: ## Run clippy; a warning is an error
	@cargo clippy --release --workspace --all-targets --quiet -- -D warnings

# The code for GPUs is only checked if the CUDA toolkit is installed. Its tests need a GPU.
lint-cuda: ## Run clippy on the code for NVIDIA GPUs
	@if [ -x "$${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || command -v nvcc > /dev/null; then \
	    cargo clippy --release --workspace --all-targets --quiet --features mp4sr-ops/cuda -- -D warnings; \
	else \
	    echo "no CUDA toolkit was found: the code for GPUs is not compiled"; \
	fi

# The code for several processes is only checked if MPI is installed.
lint-mpi: ## Run clippy on the code for MPI
	@if $(HAS_MPI); then \
	    cargo clippy --release --workspace --all-targets --quiet --features mp4sr-train/mpi -- -D warnings; \
	else \
	    echo "no MPI was found (apt-get install libopenmpi-dev libclang-dev): the code for several processes is not compiled"; \
	fi

test-mpi: ## Test training by processes that mpirun starts, including killed ones
	@if $(HAS_MPI) && command -v "$${MPIRUN:-mpirun}" > /dev/null; then \
	    cargo build --release --workspace --bins --quiet --features mp4sr-train/mpi && \
	    cargo test --release --workspace --features mp4sr-train/mpi --test mpi; \
	else \
	    echo "no MPI was found (apt-get install libopenmpi-dev openmpi-bin libclang-dev): training by mpirun is not tested"; \
	fi

# The book of docs/SUMMARY.md is written to target/book, and the documentation of the code to target/doc.
docs: ## Build the documentation of the code and the book; a warning is an error
	@RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet
	@if mdbook --version > /dev/null 2>&1; then \
	    RUST_LOG=warn sh tools/book/build.sh $(or $(CARGO_TARGET_DIR),target)/book; \
	else \
	    echo "the book was not built, because mdbook is not installed (cargo install --locked mdbook)"; \
	fi

# Advisories are only checked if there is a local copy of the RustSec database, which `cargo deny fetch db` downloads.
ADVISORIES := $(or $(CARGO_HOME),$(HOME)/.cargo)/advisory-dbs/advisory-db-*
deny: ## Check licences, sources and known vulnerabilities of dependencies
	@if ! cargo deny --version > /dev/null 2>&1; then \
	    echo "dependencies not checked: cargo-deny is not installed (cargo install --locked cargo-deny)"; \
	elif ! ls -d $(ADVISORIES) > /dev/null 2>&1; then \
	    cargo deny --log-level error check bans licenses sources && \
	    echo "advisories not checked: no copy of their database was found (cargo deny fetch db)"; \
	elif ! output=$$(cargo fetch --quiet --locked 2>&1); then \
	    case "$$output" in *--locked*) echo "$$output"; exit 1;; esac; \
	    echo "dependencies not checked: some are missing and cannot be downloaded (cargo fetch --locked)"; \
	else \
	    cargo deny --log-level error --offline check && \
	    echo "advisories of $$(git -C $(ADVISORIES) log -1 --format=%cs)"; \
	fi

unused: ## Find dependencies that no source names
	@if cargo machete --version > /dev/null 2>&1; then \
	    cargo machete; \
	else \
	    echo "unused dependencies not checked: cargo-machete is not installed (cargo install --locked cargo-machete)"; \
	fi

# No module may import one that imports it, so that each can be read and changed without those that use it.
circles: ## Find import cycles between the modules of a crate
	@if python3 --version > /dev/null 2>&1; then \
	    python3 tools/import_circles.py; \
	else \
	    echo "import cycles not checked: python3 is not installed"; \
	fi

check: format-check lint lint-cuda lint-mpi docs deny unused circles test ## Check formatting, lints, documentation, dependencies, imports and tests

# PEER_FLAGS="--compile --batches 1024"   further flags of tools/bench_peer/compare_cuda.py
bench-cuda: build ## Time steps against PyTorch on one NVIDIA GPU, in turn (CUDA=1)
	@$(or $(PYTHON),python3) tools/bench_peer/compare_cuda.py --ours $(BIN)/mp4sr-bench $(PEER_FLAGS)

# PEER_FLAGS="--quick --rounds 3"   further flags of tools/bench_peer/compare.py
bench: build ## Time operators, training steps and ranking; one JSON object per line
	@cargo bench --workspace --bench operators --quiet -- --quiet | grep '^{'
	@$(BIN)/mp4sr-bench step --stage pretrain
	@$(BIN)/mp4sr-bench step --stage finetune
	@$(BIN)/mp4sr-bench step --stage finetune --items 60000 --steps 5
	@$(BIN)/mp4sr-bench rank --items 8000
	@$(BIN)/mp4sr-bench rank --items 60000
	@$(BIN)/mp4sr-bench rank --items 1000000 --users 512 --rounds 3

# LARGE=1   also times 500,000 items, which takes 12 GiB
bench-growth: build ## Time steps over items, batch and length
	@$(BIN)/mp4sr-bench growth $(if $(call on,$(LARGE)),--large)

# MODEL=folder   a sentence encoder instead of all-MiniLM-L6-v2, which comes from a Python package
# PYTHON=python   a Python with torch, sentence-transformers, transformers and Pillow; times the same work with them, in turn
BENCH_EXTRACT := artifacts/.bench-extract
bench-extract: build ## Time encoders of sentences and images; one JSON object per line
	@$(if $(MODEL),,sh tools/bench_extract/fetch_minilm.sh $(BENCH_EXTRACT)/minilm)
	@$(if $(PYTHON),$(PYTHON) tools/bench_extract/compare.py --ours,) $(BIN)/mp4sr-bench $(if $(PYTHON),,extract --images) \
	    --folder $(BENCH_EXTRACT) --sentences $(or $(MODEL),$$(cat $(BENCH_EXTRACT)/minilm/path))

bench-peer: build ## Time steps and ranking against PyTorch, in turn
	@$(or $(PYTHON),python3) tools/bench_peer/compare.py --ours $(BIN)/mp4sr-bench $(PEER_FLAGS)

# MODEL=name   one step instead of all: lightgcn, sine, ..., unisrec-pretrain, unisrec-finetune
# QUICK=1      uses a small world and one round
# GROWTH=1     times how steps grow with users, items and events
bench-baselines: build ## Time a step of each baseline of the paper against PyTorch, in turn
	@$(or $(PYTHON),python3) tools/bench_baselines/compare.py --ours $(BIN)/mp4sr-bench $(if $(MODEL),--model $(MODEL)) \
	    $(if $(call on,$(QUICK)),--quick) $(if $(call on,$(GROWTH)),--growth) $(PEER_FLAGS)

# ITEMS="8000 60000"   the numbers of items; by default, also 1,000,000
# SECONDS=10            the duration of each measurement
# PYTHON=python         a Python with fastapi, uvicorn, httptools, uvloop, torch, safetensors and pyarrow; serves the same model, in turn
bench-serve: build ## Measure throughput and latencies of the service, exact and with an index, beside FastAPI + PyTorch
	@python3 tools/bench_serve/compare.py --program $(MP4SR) --bench $(BIN)/mp4sr-bench $(if $(PYTHON),--peer $(PYTHON)) \
	    $(if $(ITEMS),--items $(ITEMS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(CONNECTIONS),--connections $(CONNECTIONS))

# MINUTES=30          the duration of the test
# PYTHON=python       a Python with schemathesis; also sends bodies that are generated from the OpenAPI description
bench-soak: build ## Test the service under killed clients, malformed bodies and slow readers, with a new run every minute
	@python3 tools/bench_serve/soak.py --program $(MP4SR) --bench $(BIN)/mp4sr-bench $(if $(PYTHON),--python $(PYTHON)) \
	    $(if $(MINUTES),--minutes $(MINUTES))

clean-artifacts: ## Delete everything that stages wrote
	@rm -rf artifacts
