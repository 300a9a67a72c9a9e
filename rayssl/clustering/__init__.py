"""Pseudo-labels for MGTA: k-means over all workers' rows, the number of clusters, and what is told about them.

Every function takes this worker's rows and a `group`: the torch.distributed process group whose workers hold the rows
between them, in rank order. None is this process alone, also where torch.distributed is initialised: who calls it on
several workers passes `torch.distributed.group.WORLD`, and all of them call it together with the same arguments.
"""

from rayssl.clustering.choosing import ClusterChoice, choose_num_clusters
from rayssl.clustering.criteria import calinski_harabasz, normalized_mutual_information
from rayssl.clustering.lloyd import KMeansResult, kmeans
from rayssl.clustering.whitening import whiten

__all__ = [
    "ClusterChoice",
    "KMeansResult",
    "calinski_harabasz",
    "choose_num_clusters",
    "kmeans",
    "normalized_mutual_information",
    "whiten",
]
