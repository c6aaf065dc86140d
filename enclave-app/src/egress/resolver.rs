//! DNS for the workload, over UDP and TCP. Nothing is asked of anybody else.

use std::net::Ipv4Addr;
use std::time::Duration;

use egress::Name;
use egress::dns::{self, Found};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{Shared, gateway};

/// For the next question on a TCP connection, whole, and for its answer to be taken.
const TURN_WITHIN: Duration = Duration::from_secs(5);
/// After an error on the UDP socket.
const PAUSE: Duration = Duration::from_millis(10);

/// Answers for ever.
pub(super) async fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    let mut query = [0; dns::LONGEST_QUERY];
    loop {
        match socket.recv_from(&mut query).await {
            Ok((length, client)) => {
                if let Some(answer) = dns::answer(&query[..length], |name| look_up(name, shared)) {
                    // UDP may lose it anyway; the client asks again.
                    let _ = socket.send_to(&answer, client).await;
                }
            }
            // An ICMP error of an earlier answer, usually.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Questions with their length before them (RFC 1035, section 4.2.2), one after the other.
pub(super) async fn serve_tcp(client: TcpStream, shared: &Shared) {
    let Some(_place) = shared.undecided.take("egress: undecided") else { return gateway::reset(client) };
    let mut client = client;
    while let Ok(Some(())) = timeout(TURN_WITHIN, turn(&mut client, shared)).await {}
}

async fn turn(client: &mut TcpStream, shared: &Shared) -> Option<()> {
    let length = usize::from(client.read_u16().await.ok()?);
    if length > dns::LONGEST_QUERY {
        return None;
    }
    let mut query = vec![0; length];
    client.read_exact(&mut query).await.ok()?;
    let answer = dns::answer(&query, |name| look_up(name, shared))?;
    let mut message = u16::try_from(answer.len()).ok()?.to_be_bytes().to_vec();
    message.extend(answer);
    client.write_all(&message).await.ok()
}

fn look_up(name: &Name, shared: &Shared) -> Found {
    // RFC 6761, section 6.3; images often lack /etc/hosts.
    if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
        return Found::Address(Ipv4Addr::LOCALHOST);
    }
    if !shared.policy.answers_for(name) {
        shared.tell(|| format!("egress: {name} is no name that the image may reach"));
        return Found::Nothing;
    }
    let address = shared.names().address(name);
    match address {
        Ok(address) => Found::Address(address),
        Err(full) => {
            shared.tell(|| format!("egress: {name} gets no address: {full}"));
            Found::Full
        }
    }
}
