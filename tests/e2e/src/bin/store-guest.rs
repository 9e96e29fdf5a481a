//! `store-guest`: the store that ships, in a machine whose disk a test takes away.
//!
//! `commit PATH` goes on from what is there and writes two records with the same number in one transaction, again and
//! again; `read PATH` says what is there. Standard output is the recorder: a line of JSON for each answer of the store,
//! written after the answer came.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use cleat_controller::store::{CommitError, FileStore, Key, Loaded, Store as _, Version, Write};
use serde_json::{Value, json};

/// Between two tries of a write that the store does not take.
const AGAIN: Duration = Duration::from_millis(50);
/// Records grow up to this, so that the log is folded into the database now and then.
const LARGEST: u64 = 60_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, path] = &words[..] else {
        return Err("store-guest commit PATH | store-guest read PATH".into());
    };
    let opened = FileStore::open(Path::new(path));
    let (store, loaded) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            say(&json!({"refused": causes(&error)}))?;
            return Err(error.into());
        }
    };
    match what.as_str() {
        "commit" => commit(&store, &loaded).await,
        "read" => say(&json!({"term": loaded.term, "a": record(&loaded, "a"), "b": record(&loaded, "b")})),
        _ => Err(format!("{what} is neither commit nor read").into()),
    }
}

async fn commit(store: &FileStore, loaded: &Loaded) -> Result<(), Box<dyn Error>> {
    store.take_term(1).await?;
    let version = loaded.entries.iter().find(|entry| entry.key.name == "a").map(|entry| entry.version);
    let mut version = version.map_or(0, |version| version.0);
    loop {
        let n = version + 1;
        let expected = (version > 0).then_some(Version(version));
        let write = |name: &str, size: u64| Write {
            key: Key::volume(name),
            expected,
            value: Some(json!({"n": n, "pad": "x".repeat(usize::try_from(size).unwrap_or_default())})),
        };
        match store.commit(vec![write("a", 700), write("b", n * 997 % LARGEST)]).await.as_slice() {
            [Ok(Version(a)), Ok(Version(b))] if a == b && *a == n => {
                version = n;
                say(&json!({"acknowledged": n}))?;
            }
            [Err(CommitError::Retry { reason }), Err(_)] => {
                say(&json!({"retry": reason}))?;
                tokio::time::sleep(AGAIN).await;
            }
            answers => {
                say(&json!({"ended": format!("{answers:?}")}))?;
                return Err("the store takes nothing any more".into());
            }
        }
    }
}

/// Number and version of a record; `null` if it is not there.
fn record(loaded: &Loaded, name: &str) -> Value {
    let entry = loaded.entries.iter().find(|entry| entry.key.name == name);
    entry.map_or(Value::Null, |entry| json!([entry.value["n"], entry.version.0]))
}

fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn say(line: &Value) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}
