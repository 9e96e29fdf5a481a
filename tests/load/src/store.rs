//! A store as a controller has left it that granted everything before: written by the controller's own store.

use std::path::Path;

use anyhow::Context;
use cleat_controller::store::{FileStore, Key, Store, Write};
use serde_json::Value;

use crate::scale::{self, Scale};

/// Records that become durable together.
const GROUP: usize = 1000;

/// Fills a new store.
pub(crate) async fn fill(path: &Path, scale: &Scale) -> anyhow::Result<()> {
    let at = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || FileStore::open(&at)).await?;
    let (store, _) = opened.context("cannot make the store")?;
    store.take_term(1).await?;
    let of = |key: Key, record: serde_json::Result<Value>| record.map(|value| (key, value));
    let nodes = (0..scale.agents).map(|n| of(Key::node(scale::node(n)), scale::node_record(n)));
    let volumes = scale.all().map(|n| of(Key::volume(scale::volume(n)), scale::volume_record(scale, n)));
    let mut writes = Vec::with_capacity(GROUP);
    for record in nodes.chain(volumes) {
        let (key, value) = record.context("cannot make a record")?;
        writes.push(Write { key, expected: None, value: Some(value) });
        if writes.len() == GROUP {
            commit(&store, std::mem::take(&mut writes)).await?;
        }
    }
    commit(&store, writes).await
}

async fn commit(store: &FileStore, writes: Vec<Write>) -> anyhow::Result<()> {
    for written in store.commit(writes).await {
        written.context("cannot write a record")?;
    }
    Ok(())
}
