# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A translator and its word vectors, in a notebook
#
# Two invented languages, a small Transformer, two worker processes. `bash launch/setup.sh` installs
# what is needed; `source .venv-cpu/bin/activate` first. This file opens as a notebook in VS Code,
# and in Jupyter through jupytext; as a script it runs too. The page with its output,
# `translate_notebook.md`, is made in the project's folder by
#
#     jupytext --to ipynb --output - docs/examples/translate_notebook.py |
#         jupyter nbconvert --stdin --execute --to markdown \
#             --Exporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor \
#             --output-dir docs/examples --output translate_notebook

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

import dist_embed

# %% [markdown]
# ## Prepare
#
# A configuration from dictionaries; `dist_embed.load_config` reads one from a file. The corpus is
# generated. Word order and endings differ between the two languages, so that a translation word for
# word is wrong.

# %%
config = dist_embed.Config(
    run={"uri": "runs/notebook"},
    data={"synthetic": {"sentences": 6000, "held_out": 100}},
    tokenizer={"split_punctuation": False},
    embedding={"width": 32},
    model={"width": 32, "feed_forward": 64, "encoder_layers": 1, "decoder_layers": 1},
    train={"max_steps": 200, "batch_tokens": 4096, "learning_rate": 1e-2, "warmup_steps": 40}
    | {"log_every": 10, "evaluate_every": 40},
    checkpoint={"every_steps": 100},
    cluster={"launcher": "local", "num_workers": 2, "device": "cpu"},
)
data = dist_embed.prepare(config)
data.vocabulary_size

# %% [markdown]
# ## Train
#
# Workers are processes of their own. The stop button asks them to end after their step, with a
# checkpoint: the cell then raises `TrainingStopped`, and when it is run again it goes on from
# there. After the last step it finds the run complete.

# %%
trained = dist_embed.train(config)
speed = trained.tokens_per_second  # None if there was nothing left to train
print(f"{trained.steps} steps" + (f", {speed:,.0f} target tokens/s" if speed else ""))

# %% [markdown]
# ## Its course

# %%
run = dist_embed.open_run(trained.run_uri)
course = run.metrics()  # an Arrow table, a row for each line of the log

figure, axes = plt.subplots(figsize=(5, 2.6))
for name in ("nll", "validation_loss"):
    measured = course.select(["step", name]).drop_null().to_pydict()
    axes.plot(measured["step"], measured[name], label=name)
axes.set(xlabel="step", ylabel="nats per token")
axes.legend()
plt.show()

# %% [markdown]
# ## Neighbours
#
# Adjectives of the target language end by gender and number, of which nobody has told the model.

# %%
words = run.table("target")
frequent = words.frequent_words(300)
adjective = next(word for word in frequent if word.endswith("asi"))
words.neighbors(adjective, 5)

# %% [markdown]
# ## A map
#
# Vectors are numpy arrays. Adjectives of one ending lie together, whatever they mean.

# %%
endings = ("os", "osi", "as", "asi", "us", "usi")
adjectives = [word for word in frequent if word.endswith(endings)]
vectors = words.vectors(adjectives)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
x, y = PCA(2).fit_transform(vectors).T

figure, axes = plt.subplots(figsize=(5, 4))
for ending in endings:
    ours = [i for i, word in enumerate(adjectives) if word.endswith(ending)]
    axes.scatter(x[ours], y[ours], s=12, label=f"-{ending}")
axes.legend(fontsize="small")
axes.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Translate
#
# One sentence in the singular and in the plural. So short a training leaves mistakes; `evaluate`
# translates the test set, and tells how many by BLEU.

# %%
for line in run.translate(["the mabru nitesa the mostas .", "the mabrus nitesa the mostas ."]):
    print(line)

# %%
quality = dist_embed.evaluate(run)
print(f"BLEU {quality.bleu:.1f} over {quality.sentences} sentences")
