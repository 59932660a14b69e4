"""Logistic regression by stochastic gradient descent on scikit-learn's handwritten digits.

A plain nested loop over learning rate and seed, as anybody would write it: nothing here knows of ems.

    python examples/digits/train.py             all 12 combinations, one after the other
    ems parrun examples/digits/train.py         the same 12 as runs, side by side
"""

from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

EPOCHS = 20

images, labels = load_digits(return_X_y=True)

for lr in [0.0001, 0.001, 0.01, 0.1]:
    for seed in range(3):
        train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.3, random_state=seed)
        scaler = StandardScaler().fit(train_x)
        train_x, test_x = scaler.transform(train_x), scaler.transform(test_x)
        model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=lr, random_state=seed)
        for epoch in range(EPOCHS):
            model.partial_fit(train_x, train_y, classes=range(10))
            acc = model.score(test_x, test_y)
            loss = log_loss(test_y, model.predict_proba(test_x))
            print(f"epoch={epoch} loss={loss:.4f} acc={acc:.4f}")
