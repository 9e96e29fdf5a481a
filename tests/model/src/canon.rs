//! When two worlds count as one: a fingerprint that leaves out what decides nothing.
//!
//! In comes a world; out goes 128 bits over its canonical text, which is the derived `Debug` text of the core and of
//! everything else, read once with these changes (and no others, so a new field counts by itself):
//! - numbers that are only compared for equality (operations, sessions, requests) are named by their first appearance;
//!   requests stand in the order in which they came;
//! - an epoch becomes its term and its rank among the epochs of its volume that occur: only their order decides;
//! - a moment becomes its distance from now; how long ago something was counts up to the longest bound;
//! - words for people, moments for people and the history of proofs are left out: nothing decides by them;
//! - so is, where KubeVirt reports nothing, which migrations there were and since when: none is ever overdue then;
//! - so are the counters, which only ever make a number that was never used, and the core's index of operations, which
//!   repeats what each attachment waits for.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::sync::LazyLock;

use cleat_core::Epoch;

use cleat_world::world::{EPOCH_MS, QUANTUM_MS, World};

/// Whether a field's value is left out. A match, for this is asked of each word: it compares lengths first.
const fn is_left_out(field: &[u8], reports_count: bool) -> bool {
    match field {
        b"config" | b"last_seq" | b"last_operation" | b"operations" | b"past_evidence" | b"trouble" => true,
        b"message" | b"unready" | b"reason" | b"causes" | b"subsystem_nqn" | b"portals" => true,
        // Of volumes and of devices: all have the same.
        b"size_bytes" | b"host_id" | b"storage_addresses" | b"controller" | b"holders" | b"at" => true,
        // Since when a ticket waits is for people.
        b"waits_since" => true,
        // How often registrations have changed: agents of this world remember restarts in its place.
        b"changes" => true,
        // Which writes are to be counted: nothing but the asking itself follows from it, and agents of this world do not answer.
        b"counting" => true,
        b"verified" => true,
        // Something is decided by these only where KubeVirt reports.
        b"past_migrations" | b"granted_at" => !reports_count,
        _ => false,
    }
}

/// The longest time that anything is waited for, in quanta.
const OLDEST: u64 = 4;

/// A fingerprint.
pub type Print = u128;

/// Which sample of states is tried for whether all ends well: the same one in each run, unless somebody asks for another, so
/// that a run can be repeated.
pub static SAMPLE: LazyLock<u64> = LazyLock::new(|| {
    std::env::var("CLEAT_MODEL_SAMPLE").ok().and_then(|number| number.parse().ok()).unwrap_or(0)
});

/// Two worlds with the same fingerprint count as one.
#[must_use]
pub fn print(world: &World) -> Print {
    let text = text(world);
    let half = |which: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(*SAMPLE);
        hasher.write_u8(which);
        hasher.write(text.as_bytes());
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// The canonical text of a world.
#[must_use]
pub fn text(world: &World) -> String {
    let mut raw = String::with_capacity(16 << 10);
    let _ = write!(raw, "{:?}", world.budget);
    for leader in &world.leaders {
        let _ = write!(raw, "{leader:?}");
    }
    let newest = world.leaders.first().map(|l| l.core.volumes());
    for (id, record) in world.stored.iter() {
        // Almost always the newest leader's own record, and then said already.
        if newest.and_then(|n| n.get(id)) != Some(record) {
            let _ = write!(raw, "{record:?}");
        }
    }
    let _ = write!(raw, "{:?}{:?}{:?}{:?}", world.hosts, world.exports, world.open, world.told);
    if world.setup.in_cluster() {
        let _ = write!(raw, "{:?}", world.cluster);
    }
    if world.setup.dangers.tickets {
        let _ = write!(raw, "{:?}", world.tickets);
    }
    Reader::new(world, &raw).run()
}

struct Reader<'a> {
    world: &'a World,
    text: &'a str,
    raw: &'a [u8],
    at: usize,
    /// What was read since here stays as it is, and is not in `out` yet.
    as_it_is: usize,
    out: String,
    names: HashMap<(&'static str, u64, u64), usize>,
    ranks: BTreeMap<(usize, Epoch), usize>,
    field: &'a [u8],
    /// How far the clock of a leader is from the world's, in quanta.
    ahead: u64,
}

impl<'a> Reader<'a> {
    fn new(world: &'a World, text: &'a str) -> Self {
        let ahead =
            world.leaders.iter().map(|l| l.ahead.unsigned_abs().div_ceil(QUANTUM_MS)).max().unwrap_or(0);
        Self {
            world,
            text,
            raw: text.as_bytes(),
            at: 0,
            as_it_is: 0,
            out: String::with_capacity(text.len()),
            names: HashMap::new(),
            ranks: BTreeMap::new(),
            field: &[],
            ahead,
        }
    }

    fn run(mut self) -> String {
        self.rank_epochs();
        while let Some(&byte) = self.raw.get(self.at) {
            if byte.is_ascii_alphabetic() || byte == b'_' {
                self.word();
            } else if byte == b'"' {
                self.at = self.end_of_string(self.at);
            } else if byte.is_ascii_digit() {
                self.number();
            } else {
                self.at += 1;
            }
        }
        self.flush(self.raw.len());
        self.out
    }

    /// Puts out what stays as it is, up to here.
    fn flush(&mut self, end: usize) {
        self.out.push_str(&self.text[self.as_it_is..end]);
        self.as_it_is = end;
    }

    fn word(&mut self) {
        let start = self.at;
        let rest = &self.raw[start..];
        let length = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
        let word = &rest[..length];
        let after = start + length;
        self.at = after;
        if self.raw[after..].starts_with(b": ") {
            self.field = word;
            // The result of a rung, in words; that of a migration is not in quotes, and decides.
            let words = word == b"result" && self.raw[after + 2..].starts_with(b"\"");
            if words || is_left_out(word, self.world.setup.dangers.kubevirt_errs) {
                self.flush(start);
                self.at = self.end_of_value(after + 2);
                self.as_it_is = self.at;
            }
            return;
        }
        match word {
            b"Epoch" => self.instead(start, |reader| reader.epoch(after)),
            b"OperationId" => self.instead(start, |reader| reader.named("op", after)),
            b"RequestId" => self.instead(start, |reader| reader.named("request", after)),
            b"SessionId" => self.instead(start, |reader| reader.named("session", after)),
            b"UnixMillis" => self.instead(start, |reader| reader.moment(after)),
            _ => {}
        }
    }

    /// Puts out something in place of what stands from here to where that ends.
    fn instead(&mut self, start: usize, put: impl FnOnce(&mut Self)) {
        self.flush(start);
        put(self);
        self.as_it_is = self.at;
    }

    /// The numbers between here and the closing bracket.
    fn numbers(&mut self, from: usize) -> [u64; 2] {
        let mut found = [0; 2];
        let (mut at, mut which, mut inside) = (from, 0, false);
        while at < self.raw.len() && self.raw[at] != b'}' && self.raw[at] != b')' {
            let byte = self.raw[at];
            if byte.is_ascii_digit() {
                found[which] = found[which] * 10 + u64::from(byte - b'0');
                inside = true;
            } else if inside {
                (which, inside) = (1, false);
            }
            at += 1;
        }
        self.at = (at + 1).min(self.raw.len());
        found
    }

    fn epoch(&mut self, after: usize) {
        let [term, seq] = self.numbers(after);
        self.put_epoch(Epoch { term, seq });
    }

    fn put_epoch(&mut self, epoch: Epoch) {
        let v = self.world.epochs.get(&epoch).copied().unwrap_or(usize::MAX);
        let rank = self.ranks.get(&(v, epoch)).copied().unwrap_or(usize::MAX);
        let _ = write!(self.out, "E{}.{rank}", epoch.term);
    }

    fn named(&mut self, kind: &'static str, after: usize) {
        let [a, b] = self.numbers(after);
        let next = self.names.len();
        let name = *self.names.entry((kind, a, b)).or_insert(next);
        let _ = write!(self.out, "{kind}{name}");
    }

    fn moment(&mut self, after: usize) {
        let [at, _] = self.numbers(after);
        self.put_moment(at);
    }

    fn put_moment(&mut self, at: u64) {
        let now = self.world.now;
        let distance = if at > now {
            format!("+{}", at - now)
        } else {
            format!("-{}", ((now - at) / QUANTUM_MS).min(OLDEST + self.ahead))
        };
        // When a step of a migration was, is for people; that it was, is not.
        self.out.push_str(if self.field == b"steps" { "" } else { &distance });
    }

    fn number(&mut self) {
        let start = self.at;
        let rest = &self.raw[start..];
        let length = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let value =
            rest[..length].iter().fold(0u64, |n, b| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')));
        self.at = start + length;
        if value >= EPOCH_MS {
            self.instead(start, |reader| reader.put_moment(value));
        } else if let Some(epoch) = key_of(value) {
            self.instead(start, |reader| reader.put_epoch(epoch));
        }
    }

    fn end_of_string(&self, start: usize) -> usize {
        let mut at = start + 1;
        while at < self.raw.len() && self.raw[at] != b'"' {
            at += if self.raw[at] == b'\\' { 2 } else { 1 };
        }
        (at + 1).min(self.raw.len())
    }

    /// Where the value that begins here ends: at the comma or bracket that is not its own.
    fn end_of_value(&self, start: usize) -> usize {
        let (mut at, mut depth) = (start, 0usize);
        while at < self.raw.len() {
            match self.raw[at] {
                b'"' => {
                    at = self.end_of_string(at);
                    continue;
                }
                b'{' | b'[' | b'(' => depth += 1,
                b'}' | b']' | b')' if depth == 0 => return at,
                b'}' | b']' | b')' => depth -= 1,
                b',' if depth == 0 => return at,
                _ => {}
            }
            at += 1;
        }
        at
    }

    /// Finds every epoch that occurs, and ranks each among those of its volume.
    fn rank_epochs(&mut self) {
        let mut at = 0;
        while at + 6 < self.raw.len() {
            if self.raw[at] == b'E' && self.raw[at..].starts_with(b"Epoch {") {
                let [term, seq] = self.numbers(at);
                let epoch = Epoch { term, seq };
                let v = self.world.epochs.get(&epoch).copied().unwrap_or(usize::MAX);
                self.ranks.insert((v, epoch), 0);
                at = self.at;
            } else {
                at += 1;
            }
        }
        self.at = 0;
        let mut last = (usize::MAX, 0);
        for ((v, _), rank) in &mut self.ranks {
            last = if last.0 == *v { (*v, last.1 + 1) } else { (*v, 0) };
            *rank = last.1;
        }
    }
}

/// The epoch that a reservation key is made of.
fn key_of(key: u64) -> Option<Epoch> {
    let (term, seq) = (key >> 22, key & ((1 << 22) - 1));
    (term > 0 && key < EPOCH_MS).then_some(Epoch { term, seq })
}

/// Tries whether worlds that count as one can really not be told apart: the same can happen in both, and leads to
/// worlds that count as one again. Goes through so many states; says how many pairs were compared, or which action
/// told a pair apart.
///
/// # Errors
/// The action, and both canonical texts after it.
pub fn merges_are_sound(setup: cleat_world::world::Setup, states: usize) -> Result<usize, String> {
    let first = World::new(&std::sync::Arc::new(setup));
    let mut known: HashMap<Print, World> = HashMap::from([(print(&first), first.clone())]);
    let (mut open, mut compared) = (vec![first], 0);
    while let Some(world) = open.pop().filter(|_| known.len() < states) {
        for action in world.actions() {
            let next = world.after(action);
            match known.get(&print(&next)) {
                None => {
                    known.insert(print(&next), next.clone());
                    open.push(next);
                }
                Some(other) => {
                    compared += 1;
                    if next.actions() != other.actions() {
                        return Err(format!("{:?} and {:?}", next.actions(), other.actions()));
                    }
                    for action in next.actions() {
                        let (one, two) = (text(&next.after(action)), text(&other.after(action)));
                        if one != two {
                            return Err(format!("{action:?}:\n{one}\n{two}"));
                        }
                    }
                }
            }
        }
    }
    Ok(compared)
}
