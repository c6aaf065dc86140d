//! Whose turn it is. No socket and no task; time only to say when to come back.
//!
//! ```text
//! clients' turns:   A ─▶ B ─▶ C ─▶ A …          a client leaves when it waits for nothing
//! A's queue:        n1, n2, n3                  at most EACH
//! under way:        n1 ─▶ {A's answer, B's answer}   one document for both
//! ```

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::{NoDocument, Nonce, Outcome};

/// Requests of one client that wait.
pub(super) const EACH: usize = 16;
/// Requests that wait in all.
pub(super) const ALL: usize = 1024;
/// Until a first document has been timed.
const USUAL: Duration = Duration::from_millis(10);
/// Of the time that documents took lately, the newest counts for this part.
const NEWEST: u32 = 8;
/// Clients need not wait longer than this before they ask again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Who shares a queue: an IPv4 address, or an IPv6 network of 64 bits, which is
/// the least that one host is given (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Client {
        Client(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                IpAddr::V6(network.into())
            }
            address => address,
        })
    }
}

pub(super) type Answer = oneshot::Sender<Outcome>;

/// Waiting requests, shared by clients and workers.
#[derive(Debug, Default)]
pub(super) struct Queue {
    turns: Mutex<Turns>,
    news: Notify,
}

#[derive(Debug)]
struct Turns {
    order: VecDeque<Client>,
    queues: HashMap<Client, VecDeque<Nonce>>,
    /// Waiting or with a worker, and who waits for it.
    under_way: HashMap<Nonce, Vec<Answer>>,
    waiting: usize,
    usual: Duration,
    closed: bool,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            order: VecDeque::new(),
            queues: HashMap::new(),
            under_way: HashMap::new(),
            waiting: 0,
            usual: USUAL,
            closed: false,
        }
    }
}

impl Queue {
    /// Queues a request, or joins one for the same nonce; true if it joined.
    pub(super) fn join(&self, client: Client, nonce: Nonce, answer: Answer) -> Result<bool, NoDocument> {
        let joined = self.turns().join(client, nonce, answer)?;
        if !joined {
            self.news.notify_one();
        }
        Ok(joined)
    }

    /// The next nonce whose document somebody still waits for.
    pub(super) async fn next(&self) -> Nonce {
        loop {
            let news = self.news.notified();
            let (next, more) = {
                let mut turns = self.turns();
                (turns.next(), turns.waiting > 0)
            };
            match next {
                Some(nonce) => {
                    // A notice stands for one request only as long as nobody sleeps through it.
                    if more {
                        self.news.notify_one();
                    }
                    return nonce;
                }
                None => news.await,
            }
        }
    }

    /// Gives `outcome`, which took `took`, to everybody who waits for `nonce`.
    pub(super) fn answer(&self, nonce: &Nonce, outcome: &Outcome, took: Duration) {
        let answers = {
            let mut turns = self.turns();
            turns.usual = (turns.usual * (NEWEST - 1) + took) / NEWEST;
            turns.under_way.remove(nonce).unwrap_or_default()
        };
        for answer in answers {
            // A client that has gone needs no document.
            let _ = answer.send(outcome.clone());
        }
    }

    /// Nothing will be served any more: whoever waits learns it.
    pub(super) fn close(&self) {
        let mut turns = self.turns();
        *turns = Turns { closed: true, ..Turns::default() };
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.turns().waiting
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    fn join(&mut self, client: Client, nonce: Nonce, answer: Answer) -> Result<bool, NoDocument> {
        if self.closed {
            return Err(NoDocument::NotRunning);
        }
        if let Some(answers) = self.under_way.get_mut(&nonce) {
            answers.push(answer);
            return Ok(true);
        }
        let own = self.queues.get(&client).map_or(0, VecDeque::len);
        if own >= EACH || self.waiting >= ALL {
            return Err(NoDocument::Full { retry_after: self.retry_after(own) });
        }
        if own == 0 {
            self.order.push_back(client);
        }
        self.queues.entry(client).or_default().push_back(nonce.clone());
        self.under_way.insert(nonce, vec![answer]);
        self.waiting += 1;
        Ok(false)
    }

    fn next(&mut self) -> Option<Nonce> {
        while let Some(client) = self.order.pop_front() {
            let Some(queue) = self.queues.get_mut(&client) else { continue };
            let nonce = queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&client);
            } else {
                self.order.push_back(client);
            }
            let Some(nonce) = nonce else { continue };
            self.waiting -= 1;
            let awaited =
                self.under_way.get(&nonce).is_some_and(|answers| answers.iter().any(|one| !one.is_closed()));
            if awaited {
                return Some(nonce);
            }
            self.under_way.remove(&nonce);
        }
        None
    }

    /// When a client with `own` requests gets to its last one, as things are.
    fn retry_after(&self, own: usize) -> Duration {
        let rounds = u32::try_from(own.max(1)).unwrap_or(u32::MAX);
        let clients = u32::try_from(self.order.len().max(1)).unwrap_or(u32::MAX);
        let whole = self.usual.saturating_mul(rounds).saturating_mul(clients);
        whole.clamp(Duration::from_secs(1), LONGEST_RETRY)
    }
}
