"""Models whose weights ship in Python packages, so that headrace serves something real without a download.

| `class:` | model | `config:` |
|---|---|---|
| `serve_apps.hosts.packaged.embedding:MiniLM` | all-MiniLM-L6-v2, fp32, 384 dimensions | – |
| `serve_apps.hosts.packaged.embedding:MiniLMInt8` | the same in int8 on onnxruntime (`provider: onnx`) | – |
| `serve_apps.hosts.packaged.text:SmolLM2` | SmolLM2-135M-Instruct | `system_prompt`, `max_tokens`, `temperature`, … |
| `serve_apps.hosts.packaged.vision:MobileNetV2` | MobileNetV2, ImageNet | `top_k` |
| `serve_apps.hosts.packaged.vision:EfficientNetLite` | EfficientNet-Lite0 or Lite2 | `variant` (0 or 2), `top_k` |

All of them are named with `provider: torch` (the int8 one with `provider: onnx`); none needs an `artifact`.
"""
