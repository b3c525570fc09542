"""The model card of an export, README.md: what the model is, how to load it, what it scores, and what it does not."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from pipelines.config import PretrainConfig
from pipelines.report.data_card import BUILT_IN, data_facts
from pipelines.report.summary import measured_on, versions

TEMPLATE = """\
---
library_name: ashnets
tags: [ash-nets, spiking, vision-language, image-text]
---
# ASH-Net `{{ config.run.name }}`

An ASH-Net, pre-trained with ASH-Nets on Ray: a convolutional network and a spiking network look at an image side by
side, and a Transformer reads their visual tokens together with a text.

## Use
With the package `ashnets` installed; neither the internet nor anything outside this folder is needed.

```python
import ashnets

model, processor = ashnets.load("path/to/this/folder")
images = model.encode_image(**processor(images=["a.jpg"]))          # unit-norm embeddings
texts = model.encode_text(**processor(text=["a cat", "a red house"]))
print(images @ texts.T)                                             # cosines
print(model.match(**processor(images=["a.jpg"], text=["a cat"])))   # probability that they belong together
```

After `import ashnets.pretrained`, Hugging Face's `AutoModel`, `AutoConfig` and `AutoProcessor.from_pretrained` load it
too. Images are bytes, paths, PIL images or RGB arrays; `ashnets.zero_shot` classifies by class names.

## Results
{% if metrics %}
Held-out data ({{ measured_on }}), every image from rest. Chance is what the same measure shows without learning.

| measure | result | chance |
|---|---|---|
{% for key, value in metrics.items() %}
| `{{ key }}` | {{ "%.4f" | format(value) }} | {{ "%.4f" | format(chance[key]) if key in chance }} |
{% endfor %}

Firing rates: {{ rates or "no spiking layer" }}.
{% else %}
No evaluation of these weights is recorded.
{% endif %}

## Training
- {{ "an unrecorded number of" if steps is none else steps }} optimizer steps of {{ images }} images in groups of
  {{ config.groups.size }} similar ones, {{ train.precision }}, peak learning rate {{ train.lr }}
- backbone {{ model.backbone.name }}, frozen: {{ model.backbone.frozen }}, started from
  {{ origin(model.backbone.weights) }}
{% if model.summary_ratio.off %}
- no spiking encoder
{% else %}
- spiking encoder: {{ model.abstract.neuron | upper }} neurons, T = {{ model.abstract.time_steps }}, membrane potential
  between the samples of a group: {{ model.abstract.carry }}
{% endif %}
- text encoder: {{ model.text.layers }} BERT layers, started from {{ origin(model.text.init) }}
  {{- ", frozen" if model.text.frozen }}; fusion: {{ model.fusion.layers }} layers
{% if config.init %}
- every weight that fits started from the model {{ origin(config.init) }}
{% endif %}
- tasks by weight: {{ tasks }}

## Data
{% if facts and facts.sources %}
Store `{{ facts.store }}`, version {{ facts.version }}:

{% for source in facts.sources %}
- `{{ source.name }}`{{ " (%s)" % built_in[source.name] if source.name in built_in }}: {{ source.rows }};
  licence: {{ source.licences | join(" / ") or "not recorded" }}
{% endfor %}
{% else %}
Not recorded: the store was not there when this card was written.
{% endif %}

## Limits
{% if facts and facts.built_in %}
- The data are drawings with short names, and sentences from templates. The figures show that every part of the system
  learned; they say nothing about photographs, and must never be compared with results on COCO, Flickr30k or others.
{% endif %}
- Images are cut to their central square of {{ config.feed.image_size }} x {{ config.feed.image_size }} pixels, texts to
  {{ model.text.max_tokens }} word pieces.
- Whatever is wrong or one-sided in the data is in the model. Nobody has examined it for that: decide nothing about
  people by it.
- Spiking networks save energy on neuromorphic hardware; on CPUs and GPUs they are simulated, and cost more.

## Licences
- Code: Apache-2.0.
{% if facts and facts.some_built_in %}
- Pictures of the built-in data: Twemoji, copyright Twitter, Inc. and other contributors,
  [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/); changed: placed on white, and in scenes scaled and placed
  on a colour. Names: [Unicode CLDR](https://cldr.unicode.org), Unicode License.
{% endif %}
- Other data, and the initial weights named above, keep their own licences, which may bind this model too.

## Versions
{{ versions }}
"""


def model_card(config: PretrainConfig, run: Path, steps: int | None, summary: dict[str, Any] | None) -> str:
    """The card in Markdown; `steps` are those of the exported weights: figures of another step are left out."""
    recorded = summary if summary and steps in (None, summary["steps"]) else None
    steps = recorded["steps"] if recorded else steps
    train, weights = config.train, config.tasks
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
                                     keep_trailing_newline=True)
    return environment.from_string(TEMPLATE).render(
        config=config, model=config.model, train=train, steps=steps, facts=data_facts(run), built_in=BUILT_IN,
        origin=_origin, images=train.groups_per_atom * train.atoms_per_step * config.groups.size,
        measured_on=measured_on(recorded or {}),
        metrics=recorded["metrics"] if recorded else None, chance=recorded["chance"] if recorded else {},
        rates=", ".join(f"`{name}` {rate:.1%}" for name, rate in recorded["firing_rates"].items()) if recorded else "",
        tasks=", ".join(f"{name.upper()} {getattr(weights, name).weight:g}" for name in
                        ("itm", "mlm", "mvm", "itc", "stua") if getattr(weights, name).weight),
        versions=", ".join(f"{name} {version}" for name, version in (
            recorded["versions"] if recorded else versions()).items()))


def _origin(weights: str) -> str:
    """Where weights came from, without the folders of whoever trained."""
    if weights == "none":
        return "random weights"
    is_path = not weights.startswith("package:") and Path(weights).expanduser().exists()
    return f"`{Path(weights).name if is_path else weights}`"
