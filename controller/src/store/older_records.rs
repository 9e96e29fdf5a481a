//! Records as older versions wrote them, brought to today's form.

use serde_json::{Map, Value};

/// What could be one of several things was a word, or an object under that word; now it is an object that says its
/// `type`. Keys have no underscores any more, as in the Kubernetes API, which keeps the same records.
const WITH_TYPES: [&str; 4] = ["phase", "cause", "source", "drained"];

/// From schema 3 to schema 4.
pub(super) fn with_types(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(with_types).collect()),
        Value::Object(fields) => {
            // A migration's source is a node.
            let of_migration = fields.contains_key("source_epoch");
            let field = |(key, value): (String, Value)| {
                let value = match key.as_str() {
                    "source" if of_migration => value,
                    "steps" => steps(value),
                    key if WITH_TYPES.contains(&key) => typed(value),
                    _ => with_types(value),
                };
                (renamed(&key), value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        other => other,
    }
}

fn renamed(key: &str) -> String {
    if key == "word" {
        return "statement".into();
    }
    let mut parts = key.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut name, part| {
        let (initial, rest) = part.split_at(part.len().min(1));
        name.push_str(&initial.to_ascii_uppercase());
        name.push_str(rest);
        name
    })
}

fn typed(value: Value) -> Value {
    let (kind, fields) = match value {
        Value::String(kind) => (kind, Map::new()),
        // A form that is none is left as it is, and found by whoever reads the record.
        Value::Object(one) if one.len() == 1 && one.values().all(Value::is_object) => {
            match one.into_iter().next() {
                Some((kind, Value::Object(fields))) => (kind, fields),
                _ => return Value::Null,
            }
        }
        other => return with_types(other),
    };
    let Value::Object(mut fields) = with_types(Value::Object(fields)) else { return Value::Null };
    fields.insert("type".into(), Value::String(kind));
    Value::Object(fields)
}

fn steps(value: Value) -> Value {
    let Value::Array(steps) = value else { return value };
    let step = |step: Value| match step {
        Value::Array(pair) => {
            Value::Object(["step", "at"].into_iter().map(str::to_owned).zip(pair).collect())
        }
        other => other,
    };
    Value::Array(steps.into_iter().map(step).collect())
}
