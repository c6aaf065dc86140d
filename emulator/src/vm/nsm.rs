//! virtio-nsm (device id 33) over vhost-user: the same module as the process engine's.
//!
//! The driver adds two chains and kicks once: the request, then room for the
//! response, exactly [`RESPONSE_MAX`] bytes. Both come back, the request first.
//! Source: drivers/misc/nsm.c.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::queue::{self, Chain, Exit, FEATURES, Memory, Vring};
use crate::nsm::{Device, REQUEST_MAX, RESPONSE_MAX};

/// The device.
pub(super) struct Nsm {
    device: Arc<Device>,
    memory: Mutex<Option<Memory>>,
    exit: Exit,
}

impl Nsm {
    pub(super) fn new(device: Arc<Device>) -> io::Result<Nsm> {
        Ok(Nsm { device, memory: Mutex::new(None), exit: Exit::new()? })
    }

    /// Answers every request that is there together with its response chain.
    fn serve(&self, vring: &Vring) -> io::Result<()> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(memory) = memory else { return Ok(()) };
        while let Some(request) = queue::next_chain(vring, &memory) {
            let Some(response) = queue::next_chain(vring, &memory) else {
                queue::put_back(vring);
                return Ok(());
            };
            let written = self.answer(&request, &response).unwrap_or_else(|error| {
                eprintln!("virtio-nsm: the driver's buffers are unusable: {error}");
                0
            });
            queue::give_back(vring, request.head(), 0)?;
            queue::give_back(vring, response.head(), written)?;
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    fn answer(&self, request: &Chain, response: &Chain) -> io::Result<usize> {
        let mut reader = request.reader()?;
        let mut writer = response.writer()?;
        if reader.available_bytes() > REQUEST_MAX || writer.available_bytes() != RESPONSE_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::with_capacity(reader.available_bytes());
        reader.read_to_end(&mut bytes)?;
        let answer = self.device.serve(&bytes);
        io::Write::write_all(&mut writer, &answer)?;
        Ok(answer.len())
    }
}

impl VhostUserBackend for Nsm {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        64
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::empty()
    }

    fn set_event_idx(&self, _: bool) {}

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.take()
    }

    fn handle_event(&self, _: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        vrings.first().map_or(Ok(()), |vring| self.serve(vring))
    }
}
