//! The guest's vsock as seen from outside: a switch between one guest and the
//! parent's sockets, without any I/O.
//!
//! ```text
//! packets of the guest ─▶ Switch::receive ─▶ Effect (dial, deliver, end) ─▶ sockets
//! packets for the guest ◀─ next_control, send ◀─ answer, dial, took, end ◀─ sockets
//! ```
//!
//! The switch never copies towards the guest and holds at most [`ROOM`](connection::ROOM) bytes a
//! connection the other way. CIDs 0, 2 and 3 are the parent, and answers come
//! from the one that was dialled. Sources: virtio 1.2, section 5.10;
//! net/vmw_vsock/virtio_transport_common.c.

mod connection;
mod packet;
mod switch;

pub(crate) use packet::{CLOSED, HEADER_LEN, Header, NO_RECEIVE, NO_SEND};
pub(crate) use switch::{Effect, Key, Switch};
