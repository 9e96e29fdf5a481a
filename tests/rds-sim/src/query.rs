//! Which items and which of their properties a reader asked for.
//!
//! In: `?slot=…&.proplist=a,b` of a GET, or `{".query": […], ".proplist": […]}` of a POST to `print`. Out: the
//! matching items, cut down to the properties asked for. Filters of a GET are joined by "and"; `.query` is the
//! API's little stack machine: words `name=value`, `name<value`, `name>value`, `name`, `-name`, and operators
//! `#|`, `#&`, `#!`; whatever is left on the stack is joined by "and". `.id` is always in the answer (observed).

use serde_json::Value;

use crate::reply::{ApiError, Item};
use crate::value::scalar;

/// A reader's selection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Selection {
    equal: Vec<(String, String)>,
    words: Vec<String>,
    properties: Option<Vec<String>>,
}

impl Selection {
    /// From the query string of a GET.
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        let mut selection = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                ".proplist" => selection.properties = Some(split_list(&value)),
                ".query" => selection.words.push(value),
                _ => selection.equal.push((name, value)),
            }
        }
        selection
    }

    /// From the body of a POST to `print`; properties other than `.query` and `.proplist` are refused.
    pub fn from_body(body: &Item) -> Result<Self, ApiError> {
        let mut selection = Self::default();
        for (name, value) in body {
            match name.as_str() {
                ".proplist" => selection.properties = Some(list(name, value)?),
                ".query" => selection.words = list(name, value)?,
                _ => return Err(ApiError::bad_request(format!("unknown parameter {name}"))),
            }
        }
        Ok(selection)
    }

    /// The items that match, in order, each with the properties asked for.
    pub fn apply(&self, items: Vec<Item>) -> Result<Vec<Item>, ApiError> {
        let mut chosen = Vec::new();
        for item in items {
            if self.matches(&item)? {
                chosen.push(self.project(item));
            }
        }
        Ok(chosen)
    }

    /// The item with the properties asked for.
    pub fn project(&self, item: Item) -> Item {
        match &self.properties {
            None => item,
            Some(names) => item
                .into_iter()
                .filter(|(name, _)| name == ".id" || names.iter().any(|wanted| wanted == name))
                .collect(),
        }
    }

    fn matches(&self, item: &Item) -> Result<bool, ApiError> {
        let equal = self.equal.iter().all(|(name, value)| text(item, name) == Some(value));
        Ok(equal && evaluate(&self.words, item)?)
    }
}

fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name).and_then(Value::as_str)
}

fn evaluate(words: &[String], item: &Item) -> Result<bool, ApiError> {
    let mut stack: Vec<bool> = Vec::new();
    let bad = |word: &str| ApiError::bad_request(format!("invalid query word {word}"));
    for word in words {
        if let Some(operators) = word.strip_prefix('#') {
            for operator in operators.chars() {
                let top = stack.pop().ok_or_else(|| bad(word))?;
                let result = match operator {
                    '!' => !top,
                    '|' => stack.pop().ok_or_else(|| bad(word))? | top,
                    '&' => stack.pop().ok_or_else(|| bad(word))? & top,
                    _ => return Err(bad(word)),
                };
                stack.push(result);
            }
        } else {
            stack.push(holds(word, item));
        }
    }
    Ok(stack.into_iter().all(|held| held))
}

fn holds(word: &str, item: &Item) -> bool {
    if let Some((name, value)) = word.split_once('=') {
        return text(item, name) == Some(value);
    }
    if let Some((name, value)) = word.split_once(['<', '>']) {
        let (Some(Ok(have)), Ok(bound)) = (text(item, name).map(str::parse::<u64>), value.parse::<u64>())
        else {
            return false;
        };
        return if word.contains('<') { have < bound } else { have > bound };
    }
    match word.strip_prefix('-') {
        Some(name) => !item.contains_key(name),
        None => item.contains_key(word),
    }
}

fn list(name: &str, value: &Value) -> Result<Vec<String>, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid value for argument {name}"));
    match value {
        Value::Array(values) => {
            values.iter().map(|value| scalar(value).ok_or_else(invalid)).collect::<Result<Vec<_>, _>>()
        }
        Value::String(text) => Ok(split_list(text)),
        _ => Err(invalid()),
    }
}

fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn items() -> Vec<Item> {
        let item = |value: Value| value.as_object().unwrap().clone();
        vec![
            item(json!({".id": "*1", "slot": "a", "size": "10", "comment": "x"})),
            item(json!({".id": "*2", "slot": "b", "size": "20"})),
        ]
    }

    fn ids(selection: &Selection) -> Vec<String> {
        let chosen = selection.apply(items()).unwrap();
        chosen.iter().map(|item| text(item, ".id").unwrap().to_owned()).collect()
    }

    #[test]
    fn a_get_filters_by_equality_and_cuts_to_the_property_list() {
        let pairs = vec![("slot".to_owned(), "b".to_owned()), (".proplist".to_owned(), "size".to_owned())];
        let chosen = Selection::from_pairs(pairs).apply(items()).unwrap();
        assert_eq!(Value::from(chosen), json!([{".id": "*2", "size": "20"}]));
    }

    #[test]
    fn print_understands_the_query_stack_machine() {
        for (words, expected) in [
            (json!(["slot=a", "slot=b", "#|"]), vec!["*1", "*2"]),
            (json!(["slot=a", "#!"]), vec!["*2"]),
            (json!(["comment"]), vec!["*1"]),
            (json!(["-comment"]), vec!["*2"]),
            (json!(["size>15"]), vec!["*2"]),
            (json!(["size<15", "slot=b"]), vec![]),
        ] {
            let body = json!({ ".query": words });
            let selection = Selection::from_body(body.as_object().unwrap()).unwrap();
            assert_eq!(ids(&selection), expected, "{words}");
        }
        let body = json!({".query": ["#|"]});
        assert!(Selection::from_body(body.as_object().unwrap()).unwrap().apply(items()).is_err());
    }
}
