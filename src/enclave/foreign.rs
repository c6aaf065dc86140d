//! Stands in for the agent where the image has none: a foreign image says one
//! byte when its kernel is up, and can be told nothing.
//!
//! Ready is therefore "the kernel is up", and to end the workload is to close
//! the enclave, as `nitro-cli terminate-enclave` does.

use nitro_device::Cid;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::{ExitStatus, Phase};

use crate::boot::Heartbeat;
use crate::enclave::control::Order;
use crate::exit::{Exit, Failure};
use crate::supervisor::Event;

/// SIGTERM, which is what ends a workload that can be told.
const TERMINATED: u8 = 15;
/// SIGKILL, once it is in a hurry.
const KILLED: u8 = 9;

/// What the task is given.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) cid: Cid,
    pub(crate) orders: watch::Receiver<Order>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) stop: CancellationToken,
}

impl Foreign {
    /// Reports the beat, then waits for the order to end.
    pub(crate) async fn run(mut self, heartbeat: Heartbeat) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.stand_in(heartbeat) => {}
        }
    }

    async fn stand_in(&mut self, heartbeat: Heartbeat) {
        let first = match heartbeat.wait(self.cid).await {
            Ok(()) => {
                tracing::info!(cid = %self.cid, "the enclave's heartbeat came");
                vec![Event::Contact, Event::Reached(Phase::Ready)]
            }
            Err(error) => {
                vec![Event::Failed(Failure::new(
                    Exit::Resources,
                    format!("the heartbeat port broke: {error}"),
                    "see the cause, and start again",
                ))]
            }
        };
        for event in first {
            // The supervisor lives as long as this task.
            let _ = self.events.send(event).await;
        }
        let signal = ended_by(&mut self.orders).await;
        let _ = self.events.send(Event::Exited(ExitStatus::Signal(signal))).await;
    }
}

/// The signal that stands for the first order to end.
async fn ended_by(orders: &mut watch::Receiver<Order>) -> u8 {
    match orders.wait_for(|order| *order != Order::Run).await.as_deref() {
        Ok(Order::Hurry) => KILLED,
        _ => TERMINATED,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn an_order_to_end_is_the_end_with_its_signal() {
        for (order, signal) in [(Order::Stop { until: Instant::now() }, 15), (Order::Hurry, 9)] {
            let orders = watch::Sender::new(Order::Run);
            let mut receiver = orders.subscribe();
            orders.send_replace(order);
            assert_eq!(ended_by(&mut receiver).await, signal);
        }
    }
}
