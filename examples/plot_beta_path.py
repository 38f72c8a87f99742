"""
One parameter to choose
=======================

The weight decay is the only parameter of the network. Below its largest useful value, `beta_max`, the optimal
network gains neurons; cross-validation says where to stop. Both walk the same path, each network from the one
before: the first with a stated gap for every network, the second fast, for five folds.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from skcvxbn import ConvexBNRegressorCV, convex_bn_path
from skcvxbn.diagnostics import PathDisplay

X, y = load_diabetes(return_X_y=True)
y = (y - y.mean()) / y.std()
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

# %%
# Objective, lower bound and neurons of 15 networks, on all training rows.
path = convex_bn_path(X_train, y_train, betas=15, eps=0.03, random_state=0)
print("largest relative gap on the path:", f"{np.max(path.dual_gaps / path.objectives):.0e}")
PathDisplay.from_path(path).figure_.suptitle("The path, with its gaps")

# %%
# Cross-validation over ten weight decays and two truncations. With the rule of one standard error the
# network is simpler than the one of the best score.
for rule in ("best", "one_standard_error"):
    model = ConvexBNRegressorCV(n_components=[None, 5], eps=0.01, selection_rule=rule, random_state=0)
    model.fit(X_train, y_train)
    print(
        f"{rule}: beta_ratio {model.beta_ratio_:.3f}, n_components {model.n_components_}, "
        f"{model.n_neurons_} neurons, test R2 {model.score(X_test, y_test):.3f}"
    )
    PathDisplay.from_estimator(model).figure_.suptitle(f'selection_rule="{rule}"')
plt.show()
