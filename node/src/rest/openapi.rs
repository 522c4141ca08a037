//! The OpenAPI document of the REST face, made from the bindings and the descriptors of the messages.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use crate::method::{Method, Need, Right};
use crate::rest::binding::{Binding, Verb};

/// Calls with a path that no node serves yet. A test compares with what they answer.
pub const NOT_SERVED: [&str; 6] =
    ["SQLExec", "UnarySQLQuery", "ListTables", "DescribeTable", "VerifiableSQLGet", "immudb.model.DocumentService"];
/// Fields of fields that may stand in a query; no message that is asked for so is deeper.
const DEPTH_MAX: usize = 4;
/// Name of the form of errors.
const ERROR: &str = "Error";

/// Whether nodes serve the call.
pub fn is_served(method: &MethodDescriptor) -> bool {
    !NOT_SERVED.contains(&method.name()) && !NOT_SERVED.contains(&method.parent_service().full_name())
}

/// The document.
pub fn document(bindings: &[Binding]) -> Value {
    let served = || bindings.iter().filter(|binding| is_served(&binding.method));
    let mut paths: BTreeMap<String, BTreeMap<&str, Value>> = BTreeMap::new();
    for binding in served() {
        paths.entry(binding.path.clone()).or_default().insert(binding.verb.name(), operation(binding));
    }
    let mut schemas = BTreeMap::from([(ERROR.to_owned(), error_schema())]);
    let mut wanted: Vec<MessageDescriptor> =
        served().flat_map(|binding| [binding.method.input(), binding.method.output()]).collect();
    while let Some(message) = wanted.pop() {
        if !schemas.contains_key(message.full_name()) {
            schemas.insert(message.full_name().to_owned(), message_schema(&message));
            wanted.extend(message.fields().filter_map(|field| field.kind().as_message().cloned()));
        }
    }
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Alhambra",
            "version": crate::COMPATIBLE_VERSION,
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "servers": [{ "url": "/api" }, { "url": "/api/v2" }],
        "tags": TAGS.map(|(name, description)| json!({ "name": name, "description": description })),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "session": {
                    "type": "apiKey", "in": "header", "name": alhambra_proto::header::SESSION,
                    "description": "The `sessionID` of POST /authorization/session/open.",
                },
                "token": { "type": "http", "scheme": "bearer", "description": "The `token` of POST /login or GET /db/use/{name}." },
            },
        },
    })
}

const DESCRIPTION: &str = "A ledger database that nobody has to trust. Bytes (keys, values, hashes) are base64, 64-bit integers are \
    text, fields with default values are left out. Open a session first, then send its id in the header `sessionid`.";

const TAGS: [(&str, &str); 5] = [
    ("session", "Logging in and out."),
    ("key-value", "Entries, references, sorted sets and transactions of the selected database."),
    ("verifiable", "The same with proofs. A program has to verify them; the client libraries do."),
    ("database", "Databases and their settings."),
    ("user", "Users and what they may do."),
];

/// Where a call stands in the document.
fn tag(binding: &Binding) -> &'static str {
    let path = binding.path.as_str();
    let name = binding.method.name();
    if path.starts_with("/user") {
        "user"
    } else if path.starts_with("/authorization/") || matches!(path, "/login" | "/logout" | "/serverinfo" | "/health") {
        "session"
    } else if path.starts_with("/db/verifiable/") {
        "verifiable"
    } else if name.contains("Database") || name.contains("Index") || name == "CurrentState" {
        "database"
    } else {
        "key-value"
    }
}

/// What a caller needs, for people.
fn needs(need: Need) -> &'static str {
    match need {
        Need::Anonymous => "No login needed.",
        Need::Login => "For any user that is logged in.",
        Need::Session => "For any user with a session.",
        Need::Database(Right::Read) => "Needs the right to read in the selected database.",
        Need::Database(Right::Write) => "Needs the right to write in the selected database.",
        Need::Database(Right::Admin) => "Needs the right to administrate the selected database.",
        Need::Administration => "For administrators of what it changes.",
    }
}

fn operation(binding: &Binding) -> Value {
    let method = &binding.method;
    let need = Method::of_path(&binding.grpc_path()).map_or(Need::Anonymous, |method| method.need);
    let in_path: BTreeSet<&str> = binding.parameters().collect();
    let mut parameters: Vec<Value> = in_path.iter().map(|name| parameter(&method.input(), name)).collect();
    if !binding.has_body {
        query_parameters(&method.input(), "", DEPTH_MAX, &in_path, &mut parameters);
    }
    let service = method.parent_service();
    let mut operation = Map::from_iter([
        ("operationId".to_owned(), json!(format!("{}_{}", service.name(), method.name()))),
        ("summary".to_owned(), json!(method.name())),
        ("description".to_owned(), json!(needs(need))),
        ("tags".to_owned(), json!([tag(binding)])),
        ("parameters".to_owned(), json!(parameters)),
        (
            "responses".to_owned(),
            json!({
                "200": { "description": "Done.", "content": content(&reference(method.output().full_name())) },
                "default": { "description": "Refused, or failed; the text says why.", "content": content(&reference(ERROR)) },
            }),
        ),
    ]);
    if need != Need::Anonymous {
        operation.insert("security".to_owned(), json!([{ "session": [] }, { "token": [] }]));
    }
    if binding.has_body {
        let body = json!({ "required": true, "content": content(&reference(method.input().full_name())) });
        operation.insert("requestBody".to_owned(), body);
    }
    if method.options().get_field_by_name("deprecated").is_some_and(|value| value.as_bool() == Some(true)) {
        operation.insert("deprecated".to_owned(), json!(true));
    }
    debug_assert!(binding.verb != Verb::Get || !binding.has_body);
    Value::Object(operation)
}

fn content(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A parameter of the path. Its name may have dots.
fn parameter(message: &MessageDescriptor, name: &str) -> Value {
    let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let field = message.get_field_by_name(first);
    match (field, rest) {
        (Some(field), None) => {
            json!({ "name": name, "in": "path", "required": true, "schema": field_schema(&field) })
        }
        (Some(field), Some(rest)) if field.kind().as_message().is_some() => {
            let mut inner = field.kind().as_message().map_or(Value::Null, |message| parameter(message, rest));
            inner["name"] = json!(name);
            inner
        }
        _ => json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
    }
}

/// Parameters of the query: every plain field, and those of fields with fields.
fn query_parameters(
    message: &MessageDescriptor,
    prefix: &str,
    depth: usize,
    in_path: &BTreeSet<&str>,
    out: &mut Vec<Value>,
) {
    for field in message.fields() {
        let name = format!("{prefix}{}", field.name());
        match field.kind() {
            Kind::Message(inner) if !field.is_list() && !field.is_map() && depth > 0 => {
                query_parameters(&inner, &format!("{name}."), depth - 1, in_path, out);
            }
            Kind::Message(_) => {}
            _ if in_path.contains(name.as_str()) => {}
            _ => out.push(json!({ "name": name, "in": "query", "schema": field_schema(&field) })),
        }
    }
}

fn message_schema(message: &MessageDescriptor) -> Value {
    match message.full_name() {
        "google.protobuf.Struct" => return json!({ "type": "object", "additionalProperties": true }),
        "google.protobuf.Value" => return json!({ "description": "Any JSON." }),
        "google.protobuf.ListValue" => return json!({ "type": "array", "items": {} }),
        _ => {}
    }
    let properties: Map<String, Value> =
        message.fields().map(|field| (field.name().to_owned(), field_schema(&field))).collect();
    json!({ "type": "object", "properties": properties })
}

fn field_schema(field: &FieldDescriptor) -> Value {
    if field.is_map() {
        let values = field.kind().as_message().and_then(|entry| entry.get_field_by_name("value"));
        let values = values.map_or_else(|| json!({}), |field| kind_schema(&field.kind()));
        return json!({ "type": "object", "additionalProperties": values });
    }
    let one = kind_schema(&field.kind());
    if field.is_list() { json!({ "type": "array", "items": one }) } else { one }
}

fn kind_schema(kind: &Kind) -> Value {
    match kind {
        Kind::Double => json!({ "type": "number", "format": "double" }),
        Kind::Float => json!({ "type": "number", "format": "float" }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({ "type": "integer", "format": "int32" }),
        Kind::Uint32 | Kind::Fixed32 => {
            json!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX })
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({ "type": "string", "format": "int64" }),
        Kind::Uint64 | Kind::Fixed64 => json!({ "type": "string", "format": "uint64" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::String => json!({ "type": "string" }),
        Kind::Bytes => json!({ "type": "string", "format": "byte" }),
        Kind::Message(message) => reference(message.full_name()),
        Kind::Enum(values) if values.full_name() == "google.protobuf.NullValue" => {
            json!({ "nullable": true, "enum": [null] })
        }
        Kind::Enum(values) => {
            let names: Vec<String> = values.values().map(|value| value.name().to_owned()).collect();
            json!({ "type": "string", "enum": names })
        }
    }
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "required": ["error", "code", "message"],
        "properties": {
            "error": { "type": "string" },
            "code": { "type": "integer", "format": "int32", "description": "The gRPC code." },
            "message": { "type": "string", "description": "The same as `error`." },
            "details": { "type": "array", "items": { "type": "object", "additionalProperties": true } },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::binding;

    /// Everything a document refers to, by the pointer.
    fn references(value: &Value, out: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    out.insert(target.clone());
                }
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, out)),
            _ => {}
        }
    }

    #[test]
    fn the_document_has_every_served_path_and_no_loose_end() {
        let bindings = binding::all();
        let document = document(&bindings);
        let operations: Vec<&Value> = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|path| path.as_object().unwrap().values())
            .collect();
        let served = bindings.iter().filter(|binding| is_served(&binding.method)).count();
        assert_eq!((operations.len(), served), (50, 50));
        let ids: BTreeSet<&str> = operations.iter().map(|one| one["operationId"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), operations.len(), "operation ids are unique");
        let mut targets = BTreeSet::new();
        references(&document, &mut targets);
        assert!(targets.len() > 50);
        for target in targets {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
        for (path, operations) in document["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                let named: BTreeSet<String> = (operation["parameters"].as_array().unwrap().iter())
                    .filter(|parameter| parameter["in"] == "path")
                    .map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap()))
                    .collect();
                let in_path: BTreeSet<String> =
                    path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
                assert_eq!(named, in_path, "{path}");
            }
        }
    }

    #[test]
    fn forms_of_fields() {
        let document = document(&binding::all());
        let property =
            |message: &str, field: &str| document["components"]["schemas"][message]["properties"][field].clone();
        assert_eq!(property("immudb.schema.KeyRequest", "key"), json!({ "type": "string", "format": "byte" }));
        assert_eq!(property("immudb.schema.KeyRequest", "atTx"), json!({ "type": "string", "format": "uint64" }));
        let kvs = json!({ "type": "array", "items": { "$ref": "#/components/schemas/immudb.schema.KeyValue" } });
        assert_eq!(property("immudb.schema.SetRequest", "KVs"), kvs);
        let get = &document["paths"]["/db/get/{key}"]["get"];
        let names: Vec<&str> =
            get["parameters"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["key", "atTx", "sinceTx", "noWait", "atRevision"]);
        assert_eq!(get["description"], "Needs the right to read in the selected database.");
        assert!(document["paths"]["/login"]["post"].get("security").is_none());
        assert_eq!(document["paths"]["/login"]["post"]["deprecated"], true);
    }
}
