"""How the learning rate of a multi-layer perceptron decides between learning and not learning.

One hidden layer of 50 logistic units, trained by Adam on a made classification problem, over 40 learning rates
from 1e5 down to 1e-8.

    ems parrun examples/mlp_learning_rate/train.py
    ems harvest
    ems report --curve test_accuracy
"""

import warnings

import numpy as np
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

# At the far ends of the range it cannot converge: that is the finding, not a problem to be told of 40 times.
warnings.simplefilter("ignore", ConvergenceWarning)

features, labels = make_classification(n_samples=1000, random_state=1)
train_x, test_x, train_y, test_y = train_test_split(features, labels, stratify=labels, random_state=1)

for learning_rate in np.logspace(5, -8, 40):
    model = MLPClassifier(
        hidden_layer_sizes=(50,),
        activation="logistic",
        solver="adam",
        learning_rate_init=learning_rate,
        max_iter=1000,
        random_state=1,
    )
    model.fit(train_x, train_y)
    print(f"train_accuracy: {model.score(train_x, train_y):.4f}")
    print(f"test_accuracy: {model.score(test_x, test_y):.4f}")
