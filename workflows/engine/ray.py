"""The Ray engine: it runs a chain over a pool of actors for each link, and passes shards from one pool to the next.

Ray Data is not used, because it retries a row that kills its actor without end, or ends the whole job. Here the driver
knows which worker has which shard. So a death costs one attempt at that shard and nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

from pad_pipeline.errors import UnavailableError
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Done, Link
from pad_pipeline.workflows.engine.placement import make_pools
from pad_pipeline.workflows.engine.progress import Progress
from pad_pipeline.workflows.engine.ray_session import Cluster, gpus_each, ray_session, watched
from pad_pipeline.workflows.engine.scheduler import Scheduler, Wanted


class RayEngine:
    """Runs a chain on Ray, on this machine or a cluster.

    Args:
        cluster: the cluster; by default Ray on this machine.
        workers: least and greatest number of workers with models; (1, 0) follows the cluster.
    """

    def __init__(self, cluster: Cluster = Cluster(), workers: tuple[int, int] = (1, 0)) -> None:
        self.cluster, self.workers = cluster, workers

    def run(self, chain: list[Link], shards: Iterable[Attempts], progress: Progress) -> Generator[Done, None, None]:
        """See `LocalEngine.run`. The results come in any order.

        Raises:
            UnavailableError: the cluster did not give the run the workers that it needs, or went away.
        """
        with ray_session(self.cluster.address) as ray, watched(ray):
            try:
                pools = make_pools(chain, gpus_each(ray, self.cluster))
                wanted = Wanted(pools, *self.workers, self.cluster.wait)
                yield from Scheduler(ray, wanted, iter(shards), progress).results()
            except ray.exceptions.RayError as error:  # an error of Ray's own: exceptions of stages come as values
                rule = f"Ray stopped the run ({type(error).__name__}: {str(error).splitlines()[0]})"
                raise UnavailableError("engine", "ray", rule, "run the same command again to resume") from error
