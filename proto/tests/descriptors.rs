//! The compiled descriptor set equals the published description of the protocol, completely.
//!
//! The judge is written apart from the generator: it reads the same JSON and the set that the compiler made of the
//! `.proto` files, and turns both into plain lines that are compared as sets.

#![allow(clippy::unwrap_used, reason = "a test file, its helpers included")]

use std::collections::BTreeSet;

use alhambra_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::{Label, Type};
use serde_json::Value;

/// The parts of a descriptor set that `prost_types` drops: the options of methods, with the HTTP extension.
mod raw {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FileSet {
        #[prost(message, repeated, tag = "1")]
        pub file: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct File {
        #[prost(string, tag = "2")]
        pub package: String,
        #[prost(message, repeated, tag = "6")]
        pub service: Vec<Service>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Service {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub method: Vec<Method>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Method {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "4")]
        pub options: Option<Options>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Options {
        #[prost(message, optional, tag = "72295728")]
        pub http: Option<Http>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Http {
        #[prost(oneof = "Pattern", tags = "2, 3, 4, 5, 6")]
        pub pattern: Option<Pattern>,
        #[prost(string, tag = "7")]
        pub body: String,
        #[prost(message, repeated, tag = "11")]
        pub additional: Vec<Http>,
    }
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Pattern {
        #[prost(string, tag = "2")]
        Get(String),
        #[prost(string, tag = "3")]
        Put(String),
        #[prost(string, tag = "4")]
        Post(String),
        #[prost(string, tag = "5")]
        Delete(String),
        #[prost(string, tag = "6")]
        Patch(String),
    }
}

fn published() -> Value {
    serde_json::from_str(include_str!("../testdata/protocol.json")).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn is_ours(package: &str) -> bool {
    package.starts_with("immudb.")
}

fn compiled() -> FileDescriptorSet {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap()
}

/// Two sets of lines are equal, or the difference is shown.
fn assert_same(expected: BTreeSet<String>, found: BTreeSet<String>) {
    let missing: Vec<_> = expected.difference(&found).collect();
    let unexpected: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && unexpected.is_empty(), "missing: {missing:#?}\nunexpected: {unexpected:#?}");
}

fn method_line(path: &str, request: &str, response: &str, streams: (bool, bool), deprecated: bool) -> String {
    format!("{path} {request}->{response} streams {streams:?} deprecated {deprecated}")
}

#[test]
fn methods_equal_the_published_ones() {
    let json = published();
    let mut expected = BTreeSet::new();
    for service in list(&json, "services") {
        for method in list(service, "methods") {
            let flag = |key: &str| method[key].as_bool().unwrap();
            expected.insert(method_line(
                text(method, "grpc_path"),
                text(method, "request"),
                text(method, "response"),
                (flag("client_streaming"), flag("server_streaming")),
                flag("deprecated"),
            ));
        }
    }
    assert_eq!(expected.len(), 93);

    let mut found = BTreeSet::new();
    for file in compiled().file.iter().filter(|file| is_ours(file.package())) {
        for service in &file.service {
            for method in &service.method {
                found.insert(method_line(
                    &format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    method.input_type().trim_start_matches('.'),
                    method.output_type().trim_start_matches('.'),
                    (method.client_streaming(), method.server_streaming()),
                    method.options.as_ref().is_some_and(|options| options.deprecated()),
                ));
            }
        }
    }
    assert_same(expected, found);
}

fn http_lines(path: &str, http: &raw::Http, lines: &mut BTreeSet<String>) {
    let (verb, at) = match http.pattern.as_ref().unwrap() {
        raw::Pattern::Get(at) => ("GET", at),
        raw::Pattern::Put(at) => ("PUT", at),
        raw::Pattern::Post(at) => ("POST", at),
        raw::Pattern::Delete(at) => ("DELETE", at),
        raw::Pattern::Patch(at) => ("PATCH", at),
    };
    lines.insert(format!("{path} {verb} {at} body {:?}", http.body));
    http.additional.iter().for_each(|more| http_lines(path, more, lines));
}

#[test]
fn http_bindings_equal_the_published_ones() {
    let json = published();
    let mut expected = BTreeSet::new();
    for method in list(&json, "services").iter().flat_map(|service| list(service, "methods")) {
        for binding in list(method, "http") {
            let body = binding["body"].as_str().unwrap_or_default();
            let (verb, at) = (text(binding, "verb"), text(binding, "path"));
            expected.insert(format!("{} {verb} {at} body {body:?}", text(method, "grpc_path")));
        }
    }
    assert!(expected.len() > 60);

    let mut found = BTreeSet::new();
    for file in raw::FileSet::decode(FILE_DESCRIPTOR_SET).unwrap().file.iter().filter(|file| is_ours(&file.package)) {
        for service in &file.service {
            for method in &service.method {
                if let Some(http) = method.options.as_ref().and_then(|options| options.http.as_ref()) {
                    http_lines(&format!("/{}.{}/{}", file.package, service.name, method.name), http, &mut found);
                }
            }
        }
    }
    assert_same(expected, found);
}

fn kind(r#type: Type) -> String {
    format!("{type:?}").to_lowercase()
}

/// Lines of a message and of what is nested in it. A map field becomes `map<key, value>`.
fn message_lines(prefix: &str, message: &prost_types::DescriptorProto, lines: &mut BTreeSet<String>) {
    let full_name = format!("{prefix}.{}", message.name());
    lines.insert(format!("message {full_name}"));
    for range in &message.reserved_range {
        // The end of a reserved range is exclusive in descriptors.
        lines.insert(format!("{full_name} reserved {}..={}", range.start(), range.end() - 1));
    }
    let is_map_entry = |nested: &prost_types::DescriptorProto| nested.options.as_ref().is_some_and(|o| o.map_entry());
    for field in &message.field {
        let type_name = field.type_name().trim_start_matches('.');
        let entry = message
            .nested_type
            .iter()
            .find(|nested| is_map_entry(nested) && format!("{full_name}.{}", nested.name()) == type_name);
        let shape = match entry {
            Some(entry) => {
                let (key, value) = (&entry.field[0], &entry.field[1]);
                let value_name = value.type_name().trim_start_matches('.');
                format!("map<{}, {} {value_name}>", kind(key.r#type()), kind(value.r#type()))
            }
            None => {
                let label = if field.label() == Label::Repeated { "repeated" } else { "singular" };
                format!("{label} {} {type_name}", kind(field.r#type()))
            }
        };
        let oneof = field.oneof_index.map_or("", |index| message.oneof_decl[index as usize].name());
        assert!(!field.proto3_optional(), "{full_name}.{} has an explicit presence", field.name());
        let deprecated = field.options.as_ref().is_some_and(|options| options.deprecated());
        lines.insert(format!(
            "{full_name} {} {} json {} {shape} oneof {oneof:?} deprecated {deprecated}",
            field.number(),
            field.name(),
            field.json_name(),
        ));
    }
    for nested in message.nested_type.iter().filter(|nested| !is_map_entry(nested)) {
        message_lines(&full_name, nested, lines);
    }
}

#[test]
fn messages_equal_the_published_ones() {
    let json = published();
    let mut expected = BTreeSet::new();
    for message in list(&json, "messages") {
        let full_name = text(message, "full_name");
        expected.insert(format!("message {full_name}"));
        for range in list(message, "reserved_numbers") {
            expected.insert(format!("{full_name} reserved {}..={}", range[0], range[1]));
        }
        for field in list(message, "fields") {
            let name = |key: &str| field[key].as_str().unwrap_or_default();
            let shape = match text(field, "label") {
                "map" => {
                    format!("map<{}, {} {}>", name("key_type"), name("value_type"), name("value_type_name"))
                }
                label => format!("{label} {} {}", name("type"), name("type_name")),
            };
            expected.insert(format!(
                "{full_name} {} {} json {} {shape} oneof {:?} deprecated {}",
                field["number"],
                name("name"),
                name("json_name"),
                name("oneof"),
                field["deprecated"].as_bool().unwrap_or(false),
            ));
        }
    }
    let messages = expected.iter().filter(|line| line.starts_with("message ")).count();
    assert_eq!((messages, expected.len()), (176, 176 + 498 + 1));

    let mut found = BTreeSet::new();
    for file in compiled().file.iter().filter(|file| is_ours(file.package())) {
        for message in &file.message_type {
            message_lines(file.package(), message, &mut found);
        }
    }
    assert_same(expected, found);
}

#[test]
fn enums_equal_the_published_ones() {
    let json = published();
    let mut expected = BTreeSet::new();
    for r#enum in list(&json, "enums") {
        for (name, number) in r#enum["values"].as_object().unwrap() {
            expected.insert(format!("{} {name} = {number}", text(r#enum, "full_name")));
        }
    }
    assert_eq!(list(&json, "enums").len(), 5);

    let mut found = BTreeSet::new();
    for file in compiled().file.iter().filter(|file| is_ours(file.package())) {
        for r#enum in &file.enum_type {
            for value in &r#enum.value {
                found.insert(format!("{}.{} {} = {}", file.package(), r#enum.name(), value.name(), value.number()));
            }
        }
        assert!(file.message_type.iter().all(|message| message.enum_type.is_empty()));
    }
    assert_same(expected, found);
}

#[test]
fn files_have_the_published_packages_and_imports() {
    let json = published();
    let set = compiled();
    for file in list(&json, "files") {
        let found = set.file.iter().find(|found| found.name() == text(file, "file")).unwrap();
        assert_eq!((found.package(), found.syntax()), (text(file, "package"), text(file, "syntax")));
        let imports: Vec<_> = list(file, "imports").iter().map(|import| import.as_str().unwrap()).collect();
        assert_eq!(found.dependency, imports);
    }
    // Reflection serves a file only together with everything it imports.
    for import in set.file.iter().flat_map(|file| &file.dependency) {
        assert!(set.file.iter().any(|file| file.name() == import), "{import} is not in the set");
    }
}
