//! Answers kubelet's calls for one resource.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::api::device_plugin_server::DevicePlugin;
use super::api::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use super::choice::{self, Refusal};
use super::metrics::{Metrics, Outcome};
use super::offer::{Kind, Offer};

/// What kubelet is told of a plugin, in `Register` and when it asks.
pub(crate) const OPTIONS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };

/// One resource's side of the conversation. Clones are the same service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) kind: Kind,
    /// The device's path on the node.
    pub(crate) device: Arc<str>,
    pub(crate) offers: watch::Receiver<Arc<Offer>>,
    /// How many streams there are now.
    pub(crate) watchers: watch::Sender<usize>,
    pub(crate) metrics: Metrics,
    /// Ends the streams.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        // One place: a peer that reads slowly misses lists that are out of date, not the last one.
        let (to_kubelet, stream) = mpsc::channel(1);
        let watcher = Watcher::new(self);
        self.tasks.spawn(self.clone().tell(to_kubelet, watcher));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let offer = Arc::clone(&self.offers.borrow());
        let containers = request.into_inner().container_requests.into_iter();
        let container_responses = containers
            .map(|wish| {
                let size = usize::try_from(wish.allocation_size).unwrap_or(0);
                let (available, must) = (&wish.available_device_i_ds, &wish.must_include_device_i_ds);
                let device_i_ds = choice::preferred(self.kind, &offer, available, must, size);
                ContainerPreferredAllocationResponse { device_i_ds }
            })
            .collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let offer = Arc::clone(&self.offers.borrow());
        let containers = request.into_inner().container_requests.into_iter();
        let container_responses = containers
            .map(|container| {
                let granted = choice::granted(self.kind, &offer, &container.devices_ids);
                let outcome = if granted.is_ok() { Outcome::Ok } else { Outcome::Failed };
                self.metrics.allocated(self.kind, outcome);
                let numbers = granted.map_err(|refusal| refused(self.kind, &refusal))?;
                if !choice::whole_cores(&offer, &numbers) {
                    self.metrics.core_split();
                    tracing::warn!(cpus = ?numbers, "half a core is given away: no enclave can start on it, ask for whole cores");
                }
                tracing::info!(resource = ?self.kind, devices = ?numbers, "allocated");
                Ok(choice::container(self.kind, &numbers, &self.device))
            })
            .collect::<Result<_, Status>>()?;
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

impl Service {
    /// Sends the devices, and again after each change, until either side ends it.
    async fn tell(
        mut self,
        to_kubelet: mpsc::Sender<Result<ListAndWatchResponse, Status>>,
        _watcher: Watcher,
    ) {
        loop {
            let place = tokio::select! {
                () = self.stop.cancelled() => return,
                place = to_kubelet.reserve() => place,
            };
            // An error means that kubelet has hung up.
            let Ok(place) = place else { return };
            let offer = Arc::clone(&self.offers.borrow_and_update());
            place.send(Ok(offer.message(self.kind)));
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = to_kubelet.closed() => return,
                changed = self.offers.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn refused(kind: Kind, refusal: &Refusal) -> Status {
    tracing::warn!(resource = ?kind, %refusal, "allocation refused");
    match refusal {
        Refusal::Unknown(_) | Refusal::Twice(_) => Status::invalid_argument(refusal.to_string()),
        Refusal::Unhealthy(_) => Status::failed_precondition(refusal.to_string()),
    }
}

/// Counts a stream as long as it lives.
#[derive(Debug)]
struct Watcher {
    kind: Kind,
    watchers: watch::Sender<usize>,
    metrics: Metrics,
}

impl Watcher {
    fn new(service: &Service) -> Watcher {
        let Service { kind, watchers, metrics, .. } = service.clone();
        let watcher = Watcher { kind, watchers, metrics };
        watcher.change(|count| count + 1);
        watcher
    }

    fn change(&self, by: impl FnOnce(usize) -> usize) {
        self.watchers.send_modify(|count| *count = by(*count));
        self.metrics.watched_by(self.kind, *self.watchers.borrow());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.change(|count| count.saturating_sub(1));
    }
}
