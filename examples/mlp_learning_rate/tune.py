"""The learning rate of a multi-layer perceptron, searched instead of swept: one run is one learning rate.

The same problem as train.py, whose forty runs show the whole curve. A Gaussian process with a logarithmic prior finds
where it is best, about 1e-2, within 15 of them. Accuracy is the mean of a cross-validation: on one test set of 250
points luck decides between learning rates from 1e-3 to 1e-1.

    ems tune examples/mlp_learning_rate/tune.py --set 'learning_rate=loguniform(1e-5,1e5)' \\
        --metric accuracy --trials 15 --wait
    ems plot last slice              the model, its band, the acquisition and the points
    ems plot last convergence        the best so far, and how far consecutive points are apart
"""

import argparse
import warnings

from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.neural_network import MLPClassifier

# At the far ends of the range it cannot converge: that is the finding, not a problem to be told of each time.
warnings.simplefilter("ignore", ConvergenceWarning)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--learning_rate", type=float, default=0.01)
learning_rate = parser.parse_args().learning_rate

features, labels = make_classification(n_samples=1000, random_state=1)
model = MLPClassifier(
    hidden_layer_sizes=(50,),
    activation="logistic",
    solver="adam",
    learning_rate_init=learning_rate,
    max_iter=100,
    random_state=1,
)
folds = StratifiedKFold(10, shuffle=True, random_state=1)
scores = cross_validate(model, features, labels, cv=folds, return_train_score=True)
print(f"train_accuracy: {scores['train_score'].mean():.4f}")
print(f"accuracy: {scores['test_score'].mean():.4f}")
