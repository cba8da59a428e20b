"""Package metadata and every requirement; pyproject.toml holds tool settings only."""

from setuptools import find_packages, setup

TRITON = "triton==3.9.0; sys_platform == 'linux' and platform_machine == 'x86_64'"

setup(
    name="tagsds",
    version="0.1.0",
    description="Image-text retrieval with an encoder that writes its own hard negatives, on DeepSpeed",
    python_requires=">=3.11",
    packages=find_packages(include=["tagsds", "tagsds.*", "preprocess", "preprocess.*"]),
    package_data={"tagsds": ["py.typed", "recipes/*.yaml", "templates/*", "kernels/cpu/*.cpp", "kernels/cpu/*.h"]},
    install_requires=[
        "torch==2.13.0",
        "deepspeed==0.19.8",
        "transformers==5.23.0",
        "webdataset==1.0.2",
        "tensorboard==2.21.0",
        "omegaconf==2.4.0",
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
        "dev": [
            "pytest",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "import-linter==2.16",
            "eccv_caption==0.1.0",
            "types-PyYAML",
            TRITON,  # its interpreter and its compiler need no GPU: the tests run and compile every kernel
            "nltk",  # the tests hold our word tokenizer against its word_tokenize
            *("lmdb", "msgpack", "msgpack-numpy", "lz4"),  # the tests write UNITER's files
        ],
    },
    entry_points={
        "console_scripts": [
            "tagsds-pack=preprocess.pack:main",
            "tagsds-convert=tagsds.models.convert:main",
            "tagsds-extract=preprocess.extract:main",
            "tagsds-mine=tagsds.mine:main",
            "tagsds-write=tagsds.write:main",
            "tagsds-evaluate=tagsds.evaluate:main",
            "tagsds-report=tagsds.report:main",
            "tagsds-train=tagsds.train:main",
        ]
    },
)
