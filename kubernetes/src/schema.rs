//! From Rust types to the structural schemas that custom resources need.
//!
//! A structural schema gives each property once, outside of any choice. Our enums say which they are by their `type`, and
//! each has its own fields beside it; here they become one object with all fields, of which `type` alone is required.

use kube::core::schema::StructuralSchemaRewriter;
use schemars::generate::SchemaSettings;
use schemars::transform::{AddNullable, Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// The structural schema of a type.
pub(crate) fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings
        .with_transform(AddNullable::default())
        .with_transform(TypedChoices)
        .with_transform(NoDefaults)
        .with_transform(StructuralSchemaRewriter);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The API server writes no field that a record does not have: who does not know the field yet would find a record that is not
/// the one that he wrote. What it means that a field is missing is ours to say.
#[derive(Clone, Debug)]
struct NoDefaults;

impl Transform for NoDefaults {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        schema.remove("default");
    }
}

#[derive(Clone, Debug)]
struct TypedChoices;

impl Transform for TypedChoices {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        if let Some(merged) = object.get("oneOf").and_then(merged) {
            object.remove("oneOf");
            object.extend(merged);
        }
        if let Some(something) = object.get("anyOf").and_then(or_nothing) {
            object.remove("anyOf");
            object.extend(something);
            object.insert("nullable".into(), Value::Bool(true));
        }
    }
}

/// What may be there, where the choice is between that and nothing.
fn or_nothing(choices: &Value) -> Option<Map<String, Value>> {
    match choices.as_array()?.as_slice() {
        [something, nothing] if nothing.get("enum") == Some(&json!([null])) => something.as_object().cloned(),
        _ => None,
    }
}

/// One object for all choices, where each is an object that says its `type`.
fn merged(choices: &Value) -> Option<Map<String, Value>> {
    let (mut types, mut properties) = (Vec::new(), Map::new());
    for choice in choices.as_array()? {
        let of_choice = choice.get("properties")?.as_object()?;
        let named = of_choice.get("type")?;
        types.extend(named.get("const").cloned());
        types.extend(named.get("enum").and_then(Value::as_array).into_iter().flatten().cloned());
        for (name, property) in of_choice.iter().filter(|(name, _)| *name != "type") {
            properties.entry(name).or_insert_with(|| property.clone());
        }
    }
    properties.insert("type".into(), json!({"type": "string", "enum": types}));
    let merged = json!({"type": "object", "required": ["type"], "properties": properties});
    merged.as_object().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema, serde::Deserialize)]
    #[allow(dead_code)]
    struct Later {
        before: u64,
        #[serde(default)]
        later: bool,
    }

    #[test]
    fn a_field_that_came_later_is_not_written_by_the_api_server() {
        let schema = structural::<Later>();
        assert_eq!(schema["properties"]["later"], json!({"type": "boolean"}), "{schema}");
    }

    #[derive(JsonSchema)]
    #[serde(tag = "type", rename_all = "kebab-case")]
    #[allow(dead_code)]
    enum Choice {
        Nothing,
        Held { by: String, until: Option<u64> },
        Gone { by: String },
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Holder {
        one: Choice,
        perhaps: Option<Choice>,
        all: Vec<Choice>,
    }

    #[test]
    fn a_choice_becomes_one_object_that_says_its_type() {
        let schema = structural::<Holder>();
        let properties = &schema["properties"];
        for place in [&properties["one"], &properties["perhaps"], &properties["all"]["items"]] {
            assert_eq!(place["type"], "object", "{schema:#}");
            assert_eq!(place["properties"]["type"]["enum"], json!(["nothing", "held", "gone"]));
            assert_eq!(place["properties"]["by"]["type"], "string");
            assert_eq!(place["properties"]["until"]["nullable"], true);
            assert_eq!(place["required"], json!(["type"]));
        }
        assert_eq!(properties["perhaps"]["nullable"], true, "{schema:#}");
    }
}
