"""The curvature that RobustDARTS watches: the largest eigenvalue of the Hessian of the
validation loss by all alphas."""
import numpy as np
import torch
import torch.nn.functional as F

from engine import processes
from engine.precision import full_float32
from fair_darts import frozen


def curvature(plain, images, labels, weight_decay, tolerance=1e-3):
    """On a batch, by batch statistics, with the weight decay of alpha, as its authors'
    scripts have it. plain: the supernet, not accelerated, for only its operations have
    second gradients."""
    value = None
    if processes.rank() == 0:
        with full_float32():
            value = weight_decay + hessian_eigenvalue(plain.train(), images, labels, tolerance)
    return processes.gather(value)[0]


def hessian_eigenvalue(network, images, labels, tolerance):
    """Within `tolerance` of the largest eigenvalue, relative to it, by exact products
    with the Hessian. Changes the running statistics."""
    alphas = list(network.alphas)
    with frozen(network.weights()):
        loss = F.cross_entropy(network(images), labels)
        # two layers are both reduction cells: the loss knows nothing of the normal alphas
        grads = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)
        grads = torch.cat([grad.flatten() for grad in grads])

        def product(vector):
            vector = torch.as_tensor(vector.ravel()).to(grads)
            parts = torch.autograd.grad(grads, alphas, vector, retain_graph=True,
                                        materialize_grads=True)
            return torch.cat([part.flatten() for part in parts]).double().cpu().numpy()

        return largest_eigenvalue(product, len(grads), tolerance)


def largest_eigenvalue(product, size, tolerance):
    """Of a symmetric matrix of `size` rows, known by its `product` with a vector."""
    from scipy.sparse.linalg import LinearOperator, eigsh
    start = np.random.default_rng(0).standard_normal(size)
    if not product(start).any():  # ARPACK does not start from 0
        return 0.0
    matrix = LinearOperator((size, size), product, dtype=np.float64)
    [value] = eigsh(matrix, 1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
    return float(value)
