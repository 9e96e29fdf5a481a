//! From Rust types to the structural schemas that custom resources need.
//!
//! A structural schema gives each property once, outside of any choice. Our enums say which they are by their `type`, and
//! each has its own fields beside it; here they become one object with all fields, of which `type` alone is required.

use kube::core::schema::StructuralSchemaRewriter;
use schemars::generate::SchemaSettings;
use schemars::transform::{AddNullable, Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// Why there is no definition of a resource.
#[derive(Debug, thiserror::Error)]
pub enum NoDefinition {
    /// Choices share their fields in a definition: what one of them says there, it would refuse.
    #[error(
        "cannot define {of}: its choices have different fields of the name {field:?} ({one}; {other}); give one of them \
         another name"
    )]
    Unequal {
        /// The type.
        of: String,
        /// The field.
        field: String,
        /// The schema that one choice has there.
        one: String,
        /// The schema that another one has there.
        other: String,
    },
    /// What was made is none.
    #[error("cannot define a resource: what was made for it is no definition")]
    Unreadable(#[from] serde_json::Error),
}

/// The structural schema of a type.
///
/// # Errors
/// If what its choices share is not the same in all of them.
pub(crate) fn structural<T: JsonSchema>() -> Result<Value, NoDefinition> {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings.with_transform(AddNullable::default());
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    NoDefaults.transform(&mut schema);
    let mut choices = TypedChoices::default();
    choices.transform(&mut schema);
    if let Some(Unequal { field, one, other }) = choices.unequal {
        return Err(NoDefinition::Unequal { of: T::schema_name().into(), field, one, other });
    }
    StructuralSchemaRewriter.transform(&mut schema);
    Ok(schema.to_value())
}

/// The API server writes no field that a record does not have: who does not know the field yet would find a record that is not
/// the one that he wrote. What it means that a field is missing is ours to say.
struct NoDefaults;

impl Transform for NoDefaults {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        schema.remove("default");
    }
}

/// One object for all choices, and the first field that is not the same in two of them.
#[derive(Default)]
struct TypedChoices {
    unequal: Option<Unequal>,
}

struct Unequal {
    field: String,
    one: String,
    other: String,
}

impl Transform for TypedChoices {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        if let Some(merged) = object.get("oneOf").and_then(|choices| self.merged(choices)) {
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

impl TypedChoices {
    /// One object for all choices, where each is an object that says its `type`.
    fn merged(&mut self, choices: &Value) -> Option<Map<String, Value>> {
        let (mut types, mut properties) = (Vec::new(), Map::new());
        for choice in choices.as_array()? {
            let of_choice = choice.get("properties")?.as_object()?;
            let named = of_choice.get("type")?;
            types.extend(named.get("const").cloned());
            types.extend(named.get("enum").and_then(Value::as_array).into_iter().flatten().cloned());
            for (name, property) in of_choice.iter().filter(|(name, _)| *name != "type") {
                let one = properties.entry(name).or_insert_with(|| property.clone());
                let (before, here) = (demands(one), demands(property));
                if before != here {
                    let (field, one, other) = (name.clone(), before.to_string(), here.to_string());
                    self.unequal.get_or_insert(Unequal { field, one, other });
                }
            }
        }
        properties.insert("type".into(), json!({"type": "string", "enum": types}));
        let merged = json!({"type": "object", "required": ["type"], "properties": properties});
        merged.as_object().cloned()
    }
}

/// What a schema demands: all of it but the descriptions, which are for people.
fn demands(schema: &Value) -> Value {
    let mut bare = schema.clone();
    if let Ok(schema) = <&mut Schema>::try_from(&mut bare) {
        NoDescriptions.transform(schema);
    }
    bare
}

struct NoDescriptions;

impl Transform for NoDescriptions {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        schema.remove("description");
    }
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
        let schema = structural::<Later>().expect("a schema");
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
        let schema = structural::<Holder>().expect("a schema");
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

    #[derive(JsonSchema)]
    #[serde(tag = "type", rename_all = "kebab-case")]
    #[allow(dead_code)]
    enum Cause {
        Forced {
            /// A person.
            by: String,
            /// With a default in one of them alone.
            #[serde(default)]
            until: Option<u64>,
        },
        Gone {
            /// Another person.
            by: String,
            until: Option<u64>,
        },
        Interrupted {
            by: Choice,
        },
    }

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Draining {
        causes: Vec<Option<Cause>>,
    }

    #[test]
    fn a_field_that_two_choices_mean_differently_is_an_error_that_names_it() {
        let unequal = structural::<Draining>().expect_err("two fields of one name").to_string();
        for said in ["cannot define Draining", "\"by\"", r#"{"type":"string"}"#, r#""held""#] {
            assert!(unequal.contains(said), "{unequal}");
        }
    }
}
