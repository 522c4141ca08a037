//! Which verb and path stand for which call: the `google.api.http` options of the descriptors.

use std::sync::LazyLock;

use axum::routing::MethodFilter;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};

/// The descriptors of all services.
pub static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(alhambra_proto::FILE_DESCRIPTOR_SET).expect("the descriptors are ours; a test reads them")
});

/// What a request does to its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// GET.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
}

impl Verb {
    /// As the router wants it.
    pub const fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Delete => MethodFilter::DELETE,
        }
    }

    /// As the OpenAPI document wants it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

/// One verb and path, and the call that they stand for.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The verb.
    pub verb: Verb,
    /// The path below `/api`, with the names of its parameters in braces. A name may have dots, for a field of a field.
    pub path: String,
    /// Whether what is not in the path is in the body, as JSON. Otherwise it is in the query.
    pub has_body: bool,
    /// The call.
    pub method: MethodDescriptor,
}

impl Binding {
    /// The path on the wire of gRPC.
    pub fn grpc_path(&self) -> String {
        format!("/{}/{}", self.method.parent_service().full_name(), self.method.name())
    }

    /// Names of the parameters of the path, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// The path with numbers for names: a router wants the same name at the same place of all paths.
    pub fn route(&self) -> String {
        let parts = self.path.split('/').enumerate();
        let parts = parts.map(|(at, part)| if part.starts_with('{') { format!("{{{at}}}") } else { part.to_owned() });
        parts.collect::<Vec<_>>().join("/")
    }
}

/// All bindings, in the order of the descriptors. Of several calls with one verb and path the one without streams counts.
pub fn all() -> Vec<Binding> {
    let option = POOL.get_extension_by_name("google.api.http").expect("the descriptors have the HTTP options");
    let mut bindings = Vec::new();
    for method in POOL.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let options = method.options();
        if !options.has_extension(&option) || method.is_server_streaming() || method.is_client_streaming() {
            continue;
        }
        if let Value::Message(rule) = options.get_extension(&option).as_ref() {
            bindings.extend(of_rule(rule, &method));
            if let Some(more) = rule.get_field_by_name("additional_bindings")
                && let Some(more) = more.as_list()
            {
                bindings.extend(more.iter().filter_map(Value::as_message).filter_map(|rule| of_rule(rule, &method)));
            }
        }
    }
    bindings
}

fn of_rule(rule: &DynamicMessage, method: &MethodDescriptor) -> Option<Binding> {
    let text = |name| rule.get_field_by_name(name).and_then(|value| value.as_str().map(str::to_owned));
    let verbs = [("get", Verb::Get), ("post", Verb::Post), ("put", Verb::Put), ("delete", Verb::Delete)];
    let (verb, path) =
        verbs.into_iter().find_map(|(name, verb)| Some((verb, text(name).filter(|path| !path.is_empty())?)))?;
    Some(Binding { verb, path, has_body: text("body").as_deref() == Some("*"), method: method.clone() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_bindings_are_those_of_the_protocol_sheet() {
        let sheet: serde_json::Value =
            serde_json::from_str(include_str!("../../../proto/testdata/protocol.json")).unwrap();
        let mut expected = BTreeSet::new();
        for method in sheet["services"].as_array().unwrap().iter().flat_map(|s| s["methods"].as_array().unwrap()) {
            if method["server_streaming"] == true || method["client_streaming"] == true {
                continue;
            }
            for http in method["http"].as_array().unwrap() {
                let text = |key: &str| http[key].as_str().unwrap_or_default().to_owned();
                let name = method["grpc_path"].as_str().unwrap().to_owned();
                expected.insert((text("verb").to_lowercase(), text("path"), text("body") == "*", name));
            }
        }
        let bound = all().into_iter();
        let bound: BTreeSet<_> =
            bound.map(|b| (b.verb.name().to_owned(), b.path.clone(), b.has_body, b.grpc_path())).collect();
        assert_eq!(bound, expected);
        assert_eq!(bound.len(), 72);
        let places: BTreeSet<_> = all().iter().map(|b| (b.verb, b.route())).collect();
        assert_eq!(places.len(), bound.len(), "no verb and path stands for two calls");
    }

    #[test]
    fn parameters_of_a_path() {
        let all = all();
        let of = |path: &str| all.iter().find(|binding| binding.path == path).unwrap();
        let field = of("/collection/{collectionName}/field/{fieldName}");
        assert_eq!(field.parameters().collect::<Vec<_>>(), ["collectionName", "fieldName"]);
        assert_eq!(field.route(), "/collection/{2}/field/{4}");
        assert_eq!(of("/db/set").parameters().count(), 0);
    }
}
