"""
Optimal networks without training
=================================

When the features span the space of the training rows, the optimal last two layers of a batch-norm network
are a formula. The first picture checks the formula along the weight decay; the second shows what such a
network is worth on new rows, and what keeping fewer directions of the data does about it.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from skcvxbn import ClosedFormBNClassifier, ClosedFormBNNet, SVDTruncation

# %%
# One target, more features than rows. The network has one neuron for the positive part of the target and one
# for the negative part; each disappears when the weight decay exceeds the norm of its part.
rng = np.random.default_rng(0)
X, y = rng.standard_normal((30, 50)), rng.standard_normal(30) + 0.5
betas = np.linspace(0.05, 8, 60)
fits = [ClosedFormBNNet(beta).fit(X, y) for beta in betas]
norms = np.array([np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.minimum(y, 0))])
formula = [np.sum(np.where(norms > beta, beta * norms - beta**2 / 2, norms**2 / 2)) for beta in betas]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(betas, formula, label="formula of Theorem 2.1")
left.plot(betas, [fit.objective_ for fit in fits], ".", label="objective of the network, by a forward pass")
for norm in norms:
    left.axvline(norm, color="0.8", zorder=0)
left.set(xlabel="beta", ylabel="training objective", title="The formula is attained")
left.legend()

# %%
# The digits with 400 columns of noise. The optimum on all directions fits the noise; with fewer directions
# the features no longer span the rows, and a wide random layer is added.
digits, labels = load_digits(return_X_y=True)
noisy = np.hstack([digits, 4 * rng.standard_normal((len(digits), 400))])
X_train, X_test, y_train, y_test = train_test_split(noisy, labels, train_size=400, random_state=0)
kept = [5, 10, 20, 40, 80, 160, 320]
scores = []
for k in kept:
    model = make_pipeline(SVDTruncation(k, output="scores"), ClosedFormBNClassifier(1.0, random_state=0))
    scores.append(model.fit(X_train, y_train).score(X_test, y_test))
plain = ClosedFormBNClassifier(1.0).fit(X_train, y_train)
print(f"all directions: test accuracy {plain.score(X_test, y_test):.3f}")
print(f"best of the truncated: {max(scores):.3f} with {kept[int(np.argmax(scores))]} directions")

right.semilogx(kept, scores, "o-", label="SVDTruncation before it")
right.axhline(plain.score(X_test, y_test), color="C1", label="all directions")
right.set(xlabel="directions kept", ylabel="test accuracy", title="All of them are at the global optimum")
right.legend()
plt.show()
