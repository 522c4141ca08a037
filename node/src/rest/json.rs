//! JSON and text parameters to messages, and messages to JSON.
//!
//! The mapping is the one of protobuf with the choices of the original's gateway: field names as in the `.proto` files, 64-bit
//! integers as text, bytes in base64 (both alphabets are read), enums by name, fields with default values left out. Unknown
//! fields are ignored.

use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value};

/// Why a request cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The body.
    #[error("the body is not the JSON of a {message}: {source}")]
    Body {
        /// Name of the message.
        message: String,
        /// What the parser says, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The body is JSON, but no object.
    #[error("the body is not the JSON of a {message}: it has to be an object")]
    NoObject {
        /// Name of the message.
        message: String,
    },
    /// A parameter.
    #[error("type mismatch, parameter: {name}, error: {reason}")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The message that a body and parameters stand for. Parameters of the path win over fields of the body; parameters that the
/// message has no field for are ignored.
pub fn request(
    message: &MessageDescriptor,
    body: &[u8],
    parameters: &[(String, String)],
) -> Result<DynamicMessage, Unreadable> {
    let unreadable = |source| Unreadable::Body { message: message.full_name().to_owned(), source };
    let mut fields = if body.iter().all(u8::is_ascii_whitespace) {
        Map::new()
    } else {
        match serde_json::from_slice(body).map_err(unreadable)? {
            Value::Object(fields) => fields,
            Value::Null => Map::new(),
            _ => return Err(Unreadable::NoObject { message: message.full_name().to_owned() }),
        }
    };
    for (name, text) in parameters {
        set(message, &mut fields, name, text)?;
    }
    read(message, Value::Object(fields)).map_err(unreadable)
}

fn read(message: &MessageDescriptor, json: Value) -> Result<DynamicMessage, serde_json::Error> {
    const OPTIONS: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(message.clone(), json, &OPTIONS)
}

/// Puts a parameter into the JSON of the message that has it.
fn set(message: &MessageDescriptor, fields: &mut Map<String, Value>, name: &str, text: &str) -> Result<(), Unreadable> {
    let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let Some(field) = message.get_field_by_name(first) else { return Ok(()) };
    if let Some(rest) = rest {
        let Kind::Message(inner) = field.kind() else { return Ok(()) };
        if field.is_list() || field.is_map() {
            return Ok(());
        }
        let inside = fields.entry(first).or_insert_with(|| Value::Object(Map::new()));
        if !inside.is_object() {
            *inside = Value::Object(Map::new());
        }
        return match inside {
            Value::Object(inside) => set(&inner, inside, rest, text),
            _ => Ok(()),
        };
    }
    let mismatch = |reason: String| Unreadable::Parameter { name: name.to_owned(), reason };
    let value = value_of(&field, text).map_err(mismatch)?;
    // Read by itself, so that the error says which parameter it is.
    let one = |value: Value| if field.is_list() { Value::Array(vec![value]) } else { value };
    let alone = Map::from_iter([(first.to_owned(), one(value.clone()))]);
    read(message, Value::Object(alone)).map_err(|error| mismatch(error.to_string()))?;
    match fields.get_mut(first) {
        Some(Value::Array(values)) if field.is_list() => values.push(value),
        _ => _ = fields.insert(first.to_owned(), one(value)),
    }
    Ok(())
}

/// What a text stands for in a field. Numbers stay text, which the mapping reads.
fn value_of(field: &FieldDescriptor, text: &str) -> Result<Value, String> {
    match field.kind() {
        Kind::Message(inner) => Err(format!("{} has fields: set them as {}.FIELD", inner.name(), field.name())),
        Kind::Bool => match text {
            "true" | "1" => Ok(Value::Bool(true)),
            "false" | "0" => Ok(Value::Bool(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        Kind::Enum(_) => Ok(text.parse::<i32>().map_or_else(|_| Value::from(text), Value::from)),
        _ => Ok(Value::from(text)),
    }
}

/// A message as JSON.
pub fn response(message: &DynamicMessage) -> Result<Vec<u8>, serde_json::Error> {
    const OPTIONS: SerializeOptions = SerializeOptions::new().use_proto_field_name(true);
    let mut out = Vec::new();
    message.serialize_with_options(&mut serde_json::Serializer::new(&mut out), &OPTIONS)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::rest::binding::POOL;

    fn message(name: &str) -> MessageDescriptor {
        POOL.get_message_by_name(name).unwrap()
    }

    fn as_json(message: &DynamicMessage) -> String {
        String::from_utf8(response(message).unwrap()).unwrap()
    }

    fn parameters(parameters: &[(&str, &str)]) -> Vec<(String, String)> {
        parameters.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn names_numbers_and_bytes_as_the_original_writes_them() {
        let body = br#"{"KVs":[{"key":"a2V5","value":"_-8"}],"noWait":true,"kVs":[],"other":{"x":1}}"#;
        let set = request(&message("immudb.schema.SetRequest"), body, &[]).unwrap();
        let decoded = alhambra_proto::schema::SetRequest::decode(&*set.encode_to_vec()).unwrap();
        assert_eq!((decoded.k_vs.len(), &*decoded.k_vs[0].key, decoded.no_wait), (1, &b"key"[..], true));
        assert_eq!(&*decoded.k_vs[0].value, [0xff, 0xef], "the alphabet of URLs, without padding");
        assert_eq!(as_json(&set), r#"{"KVs":[{"key":"a2V5","value":"/+8="}],"noWait":true}"#);

        let header = alhambra_proto::schema::TxHeader { id: u64::MAX, nentries: 1, ts: -5, ..Default::default() };
        let header = DynamicMessage::decode(message("immudb.schema.TxHeader"), &*header.encode_to_vec()).unwrap();
        assert_eq!(as_json(&header), r#"{"id":"18446744073709551615","ts":"-5","nentries":1}"#);
        assert_eq!(as_json(&DynamicMessage::new(message("google.protobuf.Empty"))), "{}");
        // A member of a oneof appears although it has the default value.
        let zero = request(&message("immudb.schema.SQLValue"), br#"{"n":"0"}"#, &[]).unwrap();
        assert_eq!(as_json(&zero), r#"{"n":"0"}"#);
        for number in ["7", r#""7""#] {
            let body = format!(r#"{{"tx":{number}}}"#);
            let tx = request(&message("immudb.schema.TxRequest"), body.as_bytes(), &[]).unwrap();
            assert_eq!(as_json(&tx), r#"{"tx":"7"}"#);
        }
    }

    #[test]
    fn parameters_win_nest_and_repeat() {
        let tx = message("immudb.schema.TxRequest");
        let given = [
            ("tx", "9"),
            ("entriesSpec.kvEntriesSpec.action", "RAW_VALUE"),
            ("entriesSpec.zEntriesSpec.action", "1"),
            ("noWait", "true"),
            ("nothing.of.that", "x"),
            ("unknown", "x"),
        ];
        let read = request(&tx, br#"{"tx":"1"}"#, &parameters(&given)).unwrap();
        let expected = concat!(
            r#"{"tx":"9","entriesSpec":{"kvEntriesSpec":{"action":"RAW_VALUE"},"#,
            r#""zEntriesSpec":{"action":"ONLY_DIGEST"}},"noWait":true}"#
        );
        assert_eq!(as_json(&read), expected);
        let keys = message("immudb.schema.KeyListRequest");
        let read = request(&keys, b"", &parameters(&[("keys", "YQ=="), ("keys", "Yg")])).unwrap();
        assert_eq!(as_json(&read), r#"{"keys":["YQ==","Yg=="]}"#);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let tx = message("immudb.schema.TxRequest");
        let error = |body: &str, given: &[(&str, &str)]| {
            request(&tx, body.as_bytes(), &parameters(given)).unwrap_err().to_string()
        };
        assert!(error("{", &[]).starts_with("the body is not the JSON of a immudb.schema.TxRequest: EOF"));
        assert!(error("[]", &[]).ends_with("it has to be an object"));
        assert!(error(r#"{"tx":true}"#, &[]).starts_with("the body is not"));
        assert!(error(r#"{"tx":"1"} x"#, &[]).contains("trailing characters"));
        for (name, text) in [("tx", "x"), ("tx", ""), ("tx", "-1"), ("noWait", "yes"), ("entriesSpec", "1")] {
            let error = error("", &[(name, text)]);
            assert!(error.starts_with(&format!("type mismatch, parameter: {name}, error: ")), "{error}");
        }
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(error(&format!(r#"{{"entriesSpec":{deep}}}"#), &[]).contains("recursion"), "no stack is used up");
    }
}
