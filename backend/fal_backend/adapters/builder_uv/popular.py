"""Names of much used distributions: what a misspelt requirement may have meant."""

from __future__ import annotations

__all__ = ["POPULAR"]

POPULAR: frozenset[str] = frozenset(
    """
    accelerate aiohttp albumentations anthropic asyncpg beautifulsoup4 bitsandbytes black boto3 catboost
    click contourpy cryptography cython dask datasets diffusers duckdb einops fastapi faster-whisper ffmpeg-python
    filelock flask fsspec gensim google-cloud-storage gradio grpcio h5py httpx huggingface-hub imageio inflect
    insightface jax jinja2 joblib jsonschema keras kornia langchain librosa lightgbm lightning litellm llama-cpp-python
    loguru lxml markdown matplotlib mediapipe moviepy msgpack nltk numba numpy ollama onnx onnxruntime
    onnxruntime-gpu openai opencv-contrib-python opencv-python opencv-python-headless openpyxl optimum orjson pandas
    peft pillow plotly polars protobuf psutil psycopg psycopg2-binary pyarrow pydantic pydub pyjokes pymongo pypdf
    python-dateutil python-dotenv python-multipart pytorch-lightning pyyaml redis regex requests rich safetensors
    scikit-image scikit-learn scipy seaborn segment-anything sentence-transformers sentencepiece shapely soundfile
    spacy sqlalchemy statsmodels sympy tensorflow tenacity tiktoken timm tokenizers torch torchaudio torchvision tqdm
    transformers trimesh typer ultralytics urllib3 uvicorn vadersentiment vllm websockets whisper xformers xgboost
    """.split()  # noqa: SIM905  # as a list it would be 130 lines
)
