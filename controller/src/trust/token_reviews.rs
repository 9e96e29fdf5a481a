//! Questions about tokens, so that neither a flood of bad ones nor an API server that hangs holds up anybody else.
//!
//! In comes a token with the address that it came from; out goes whose it is, or why that is not known. What holds:
//! - Answers are kept for seconds, by the token's hash: a good one for [`GOOD_FOR`] at most and never past the token's end.
//! - One address has [`AT_ONCE_EACH`] questions under way at most; all together [`AT_ONCE`], in the order in which they came.
//! - An address whose tokens were refused again and again, or which did not wait for the answers, is refused without a
//!   question until a while has passed.
//! - A token is neither kept nor shown.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::reviews::{ClusterUser, Reviewed};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Cluster;

/// How long a good answer counts.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(10);
/// How long a refusal counts: a pod that has just been made may be one that the API server does not see yet.
const BAD_FOR: Duration = Duration::from_secs(5);
/// Answers of each kind that are kept.
const KEPT: usize = 4096;
/// Questions under way.
const AT_ONCE: usize = 32;
/// The same of one address.
const AT_ONCE_EACH: usize = 4;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// Refusals that an address has before it has to wait.
const REFUSALS: u32 = 20;
/// How long until it has one more.
const ONE_MORE: Duration = Duration::from_secs(1);
/// Addresses that are known.
const ADDRESSES: usize = 4096;

type Hashed = [u8; 32];

/// Why it is not known whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotKnown {
    /// It proves nothing.
    Refused(String),
    /// Nobody was asked: too many were.
    TooMany,
    /// The API server was asked, and it is not known what it says.
    Unanswered(ApiError),
}

/// Questions about the tokens of one kind of client.
pub(super) struct TokenReviews {
    audience: Option<String>,
    places: Semaphore,
    good: Mutex<Answers<Hashed, ClusterUser>>,
    bad: Mutex<Answers<Hashed, String>>,
    addresses: Mutex<HashMap<IpAddr, Address>>,
}

/// What is known of an address.
struct Address {
    places: Arc<Semaphore>,
    /// Each refusal puts it off; it is in the past for who had none lately.
    forgiven: Instant,
}

/// Answers that count for a while.
struct Answers<K, V>(HashMap<K, (Instant, V)>);

impl<K: Hash + Eq + Clone, V: Clone> Answers<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.0.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, answer)| answer.clone())
    }

    fn keep(&mut self, key: K, answer: V, time: Duration) {
        let now = Instant::now();
        if self.0.len() >= KEPT {
            self.0.retain(|_, (until, _)| *until > now);
        }
        if self.0.len() >= KEPT
            && let Some(any) = self.0.keys().next().cloned()
        {
            self.0.remove(&any);
        }
        self.0.insert(key, (now + time, answer));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TokenReviews {
    /// About tokens for this audience; `None`: for the API server itself.
    pub(super) fn new(audience: Option<String>) -> Self {
        Self {
            audience,
            places: Semaphore::new(AT_ONCE),
            good: Mutex::new(Answers(HashMap::new())),
            bad: Mutex::new(Answers(HashMap::new())),
            addresses: Mutex::default(),
        }
    }

    /// Whose a token is, which came from there. `until`: when it ends, where that is known.
    pub(super) async fn whose(
        &self,
        cluster: &dyn Cluster,
        token: &str,
        from: IpAddr,
        until: Option<SystemTime>,
    ) -> Result<ClusterUser, NotKnown> {
        let hash: Hashed = Sha256::digest(token.as_bytes()).into();
        if let Some(answer) = self.known(&hash) {
            return answer;
        }
        let turn = async {
            let place = self.place_of(from)?.acquire_owned().await.map_err(|_| NotKnown::TooMany)?;
            let all = self.places.acquire().await.map_err(|_| NotKnown::TooMany)?;
            Ok((place, all))
        };
        let _turn = tokio::time::timeout(TURN, turn).await.map_err(|_| NotKnown::TooMany)??;
        // Another call with the same token may have been answered meanwhile.
        if let Some(answer) = self.known(&hash) {
            return answer;
        }
        // Whoever goes before the answer has had his question all the same: it counts as refused until it is answered.
        self.charge(from);
        match cluster.token(token, self.audience.as_deref()).await {
            Ok(Reviewed::User(user)) => {
                self.forgive(from);
                let left = until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
                lock(&self.good).keep(hash, user.clone(), left.unwrap_or(GOOD_FOR).min(GOOD_FOR));
                Ok(user)
            }
            Ok(Reviewed::Refused(why)) => {
                lock(&self.bad).keep(hash, why.clone(), BAD_FOR);
                Err(NotKnown::Refused(why))
            }
            Err(error) => {
                self.forgive(from);
                Err(NotKnown::Unanswered(error))
            }
        }
    }

    fn known(&self, hash: &Hashed) -> Option<Result<ClusterUser, NotKnown>> {
        let good = lock(&self.good).get(hash).map(Ok);
        good.or_else(|| lock(&self.bad).get(hash).map(|why| Err(NotKnown::Refused(why))))
    }

    fn place_of(&self, from: IpAddr) -> Result<Arc<Semaphore>, NotKnown> {
        let (now, mut addresses) = (Instant::now(), lock(&self.addresses));
        if addresses.len() >= ADDRESSES && !addresses.contains_key(&from) {
            addresses.retain(|_, address| {
                address.forgiven > now || address.places.available_permits() < AT_ONCE_EACH
            });
            if addresses.len() >= ADDRESSES {
                // Sooner one is forgiven than somebody new turned away.
                let idle = |address: &Address| address.places.available_permits() == AT_ONCE_EACH;
                let one = addresses.iter().find(|(_, address)| idle(address)).map(|(known, _)| *known);
                addresses.remove(&one.ok_or(NotKnown::TooMany)?);
            }
        }
        let address = addresses
            .entry(from)
            .or_insert_with(|| Address { places: Arc::new(Semaphore::new(AT_ONCE_EACH)), forgiven: now });
        if address.forgiven > now + ONE_MORE * REFUSALS {
            return Err(NotKnown::TooMany);
        }
        Ok(Arc::clone(&address.places))
    }

    fn charge(&self, from: IpAddr) {
        if let Some(address) = lock(&self.addresses).get_mut(&from) {
            address.forgiven = address.forgiven.max(Instant::now()) + ONE_MORE;
        }
    }

    fn forgive(&self, from: IpAddr) {
        if let Some(address) = lock(&self.addresses).get_mut(&from) {
            address.forgiven -= ONE_MORE;
        }
    }
}

#[cfg(test)]
#[path = "token_reviews_tests.rs"]
mod tests;
