"""Package metadata and every requirement; pyproject.toml holds tool settings only.

Bounds: a lower bound is the version that is tested, and requirements.lock names all versions of the tested environment (`make`
installs by it). An upper bound stands where the code leans on what a release may change. The others are used through old and
stable parts of their interfaces.
"""

from pathlib import Path

from setuptools import find_packages, setup

TRITON = "triton==3.9.0; sys_platform == 'linux' and platform_machine == 'x86_64'"
SERVE = ["fastapi>=0.165", "uvicorn>=0.54"]
DOCS = ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.8.1,<10", "mkdocstrings[python]>=1.0.8,<2"]

setup(
    name="tagsds",
    version="0.1.0",
    description="Image-text retrieval with an encoder that writes its own hard negatives, on DeepSpeed",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # ds_configs/ and slurm/ lie at the top of a checkout; in the installed package they are tagsds/ds_configs and tagsds/slurm
    # (tagsds/shipped.py finds them in either place)
    packages=[
        *find_packages(include=["tagsds", "tagsds.*", "preprocess", "preprocess.*"]),
        *("tagsds.ds_configs", "tagsds.slurm"),
    ],
    package_dir={"tagsds.ds_configs": "ds_configs", "tagsds.slurm": "slurm"},
    package_data={
        "tagsds": ["py.typed", "recipes/*.yaml", "templates/*", "serve/page/*", "kernels/cpu/*.cpp", "kernels/cpu/*.h"],
        "tagsds.ds_configs": ["*.json", "*.md"],
        "tagsds.slurm": ["*.sh", "*.md"],
    },
    install_requires=[
        # pinned: any other version comes from PyPI as a CUDA build of several gigabytes, also where there is no GPU
        "torch==2.13.0",
        # workarounds for its faults touch its internals (tagsds/engine)
        "deepspeed>=0.19.8,<0.20",
        "transformers>=5.23.0,<6",
        "webdataset>=1.0.2,<2",
        "tensorboard>=2.21.0",
        "omegaconf>=2.4.0,<3",
        "numpy",
        "safetensors",
        "tqdm",
        "pillow",
        "matplotlib",
        "jinja2",
        "ninja",  # DeepSpeed compiles its shared-memory all-reduce with it at the first launch
        "setuptools<81",  # torch's extension builder still imports pkg_resources-era modules
    ],
    extras_require={
        # PyPI's "apex" is another project; NVIDIA's is built from its repository.
        "apex": ["apex @ git+https://github.com/NVIDIA/apex.git"],
        "lmdb": ["lmdb", "msgpack", "lz4"],
        "spacy": ["spacy"],
        "eccv": ["eccv_caption==0.1.0"],  # relevance data of ECCV Caption and CxC
        # The kernels of tagsds/kernels/triton; a CUDA build of torch brings its own Triton, which serves too.
        "kernels": [TRITON],
        "serve": SERVE,  # tagsds-serve
        "docs": DOCS,  # `make docs`
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "import-linter==2.16",
            "eccv_caption==0.1.0",
            "types-PyYAML",
            TRITON,  # its interpreter and its compiler need no GPU: the tests run and compile every kernel
            "nltk",  # the tests hold our word tokenizer against its word_tokenize
            *("lmdb", "msgpack", "msgpack-numpy", "lz4"),  # the tests write UNITER's files
            *SERVE,
            "httpx",  # the tests call the page without a socket
            "selenium",  # and in chromium, where it is installed
            *("nbclient", "nbformat", "ipykernel"),  # and run the notebook
            *DOCS,  # the tests build the pages; 130 MB, most of it icons
        ],
    },
    entry_points={
        "console_scripts": [
            "tagsds-pack=preprocess.pack:main",
            "tagsds-convert=tagsds.models.convert:main",
            "tagsds-extract=preprocess.extract:main",
            "tagsds-edit=preprocess.edits:main",
            "tagsds-mine=tagsds.mine:main",
            "tagsds-write=tagsds.write:main",
            "tagsds-evaluate=tagsds.evaluate:main",
            "tagsds-report=tagsds.report:main",
            "tagsds-train=tagsds.train:program",
            "tagsds-project=tagsds.project:main",
            "tagsds-serve=tagsds.serve.command:main",
        ]
    },
)
