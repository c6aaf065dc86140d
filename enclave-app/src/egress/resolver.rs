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

#[cfg(test)]
mod tests {
    use super::super::Dials;
    use super::*;
    use egress::names::Names;
    use std::sync::Arc;

    const SERVFAIL: u8 = 2;

    /// A question for the A record of `name` (RFC 1035, section 4.1).
    fn question(name: &str) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        query
    }

    #[tokio::test]
    async fn a_name_that_finds_the_table_full_is_servfail_and_told_of_and_the_others_keep_their_addresses() {
        let policy = vec!["*.example.com:443".to_owned()].try_into().unwrap();
        let names = Names::new(Ipv4Addr::new(198, 18, 0, 1), 1);
        let shared = Arc::new(Shared::new(policy, Arc::new(Dials::default()), names));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(socket.local_addr().unwrap()).await.unwrap();
        let ask = async |name| {
            client.send(&question(name)).await.unwrap();
            let mut answer = vec![0; dns::LONGEST_QUERY];
            let length = client.recv(&mut answer).await.unwrap();
            answer.truncate(length);
            let last: [u8; 4] = *answer.last_chunk().unwrap();
            let (code, answers) = (answer[3] & 15, u16::from_be_bytes([answer[6], answer[7]]));
            (code, (answers == 1).then(|| Ipv4Addr::from(last)))
        };
        let told = || shared.told.lock().unwrap().lines;
        let only = Some(Ipv4Addr::new(198, 18, 0, 1));
        let asked = async {
            assert_eq!(ask("first.example.com").await, (0, only));
            assert_eq!(told(), 0);
            assert_eq!(ask("second.example.com").await, (SERVFAIL, None));
            assert_eq!(told(), 1);
            assert_eq!(ask("first.example.com").await, (0, only));
            assert_eq!(told(), 1);
        };
        tokio::select! {
            () = serve_udp(&socket, &shared) => panic!("it answers for ever"),
            answered = timeout(Duration::from_secs(10), asked) => answered.expect("an answer to each"),
        }
    }
}
