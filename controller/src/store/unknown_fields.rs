//! Fields of a stored record that this version does not know. A later version wrote them, and whoever writes the record
//! back as it understood it would lose them.
//!
//! What counts: a key of an object, at any depth, that is missing once the record was read and written again. `null` counts
//! as a missing field: a later version also reads the records of before it had the field, so to it both say the same.

use serde_json::Value;

/// The path of the first field that `stored` has and `kept` lacks.
pub(crate) fn left_out(stored: &Value, kept: &Value) -> Option<String> {
    match stored {
        Value::Object(fields) => {
            fields.iter().filter(|(_, value)| !value.is_null()).find_map(|(key, value)| {
                let Some(kept) = kept.get(key) else { return Some(key.clone()) };
                left_out(value, kept).map(|inner| below(key, &inner))
            })
        }
        Value::Array(items) => items.iter().enumerate().find_map(|(at, item)| {
            let here = format!("[{at}]");
            let Some(kept) = kept.get(at) else { return Some(here) };
            left_out(item, kept).map(|inner| below(&here, &inner))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn below(outer: &str, inner: &str) -> String {
    let point = if inner.starts_with('[') { "" } else { "." };
    format!("{outer}{point}{inner}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_is_lost_at_any_depth_is_named_by_its_path() {
        let kept = json!({"a": 1, "list": [{"b": {"c": "x"}}], "none": null});
        for (more, path) in [
            (json!({"new": 1}), Some("new")),
            (json!({"new": {}}), Some("new")),
            (json!({"a": {"new": false}}), Some("a.new")),
            (json!({"list": [{"b": {"c": "x", "new": []}}]}), Some("list[0].b.new")),
            (json!({"list": [{"b": {}}, {"b": {}}]}), Some("list[1]")),
            (json!({"none": {"new": 0}}), Some("none.new")),
            (json!({"new": null, "list": [{"new": null}]}), None),
            (json!({"a": "one", "list": [{"b": {"c": "y"}}]}), None),
        ] {
            assert_eq!(left_out(&more, &kept).as_deref(), path, "{more}");
        }
    }
}
