#!/usr/bin/env python3
"""Writes proto/{schema,documents,authorization}.proto from testdata/protocol.json.

The JSON file is the description of the wire protocol that the SDKs speak: services, methods, HTTP bindings, messages
and enums. The test `descriptor_set_equals_the_published_protocol` compares what the compiler makes of the generated
files with the same JSON, so neither can drift. Run it from anywhere: `python3 proto/generate.py`.
"""

import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
PROTOCOL = json.loads((HERE / "testdata" / "protocol.json").read_text())
AUTHORIZATION = "immudb.model.AuthorizationService"


def reference(name, package):
    """A type name as written inside `package`: the leading dot makes it absolute, hence never ambiguous."""
    own = package + "."
    return name[len(own):] if name.startswith(own) and "." not in name[len(own):] else "." + name


def field_type(field, package):
    if field["type"] == "map":
        value = field["value_type"]
        if value in ("message", "enum"):
            value = reference(field["value_type_name"], package)
        return f"map<{field['key_type']}, {value}>"
    base = reference(field["type_name"], package) if field["type"] in ("message", "enum") else field["type"]
    return f"repeated {base}" if field["label"] == "repeated" else base


def field_line(field, package):
    options = " [deprecated = true]" if field.get("deprecated") else ""
    return f"{field_type(field, package)} {field['name']} = {field['number']}{options};"


def message_lines(message, by_parent, package):
    lines = [f"message {message['name'].split('.')[-1]} {{"]
    for first, last in message.get("reserved_numbers", []):
        lines.append(f"  reserved {first};" if first == last else f"  reserved {first} to {last};")
    for nested in by_parent.get(message["full_name"], []):
        lines += ["  " + line for line in message_lines(nested, by_parent, package)]
    written = set()
    for field in message["fields"]:
        oneof = field.get("oneof")
        if oneof is None:
            lines.append("  " + field_line(field, package))
        elif oneof not in written:
            written.add(oneof)
            lines.append(f"  oneof {oneof} {{")
            lines += ["    " + field_line(f, package) for f in message["fields"] if f.get("oneof") == oneof]
            lines.append("  }")
    return lines + ["}"]


def http_lines(bindings, indent):
    first, rest = bindings[0], bindings[1:]
    lines = [f'{indent}{first["verb"].lower()}: "{first["path"]}"']
    if "body" in first:
        lines.append(f'{indent}body: "{first["body"]}"')
    for binding in rest:
        lines.append(f"{indent}additional_bindings {{")
        lines += http_lines([binding], indent + "  ")
        lines.append(f"{indent}}}")
    return lines


def service_lines(service):
    package = service["package"]
    lines = [f"service {service['name']} {{"]
    for method in service["methods"]:
        request = ("stream " if method["client_streaming"] else "") + reference(method["request"], package)
        response = ("stream " if method["server_streaming"] else "") + reference(method["response"], package)
        signature = f"  rpc {method['name']}({request}) returns ({response})"
        options = ["    option deprecated = true;"] if method["deprecated"] else []
        if method["http"]:
            options.append("    option (google.api.http) = {")
            options += http_lines(method["http"], "      ")
            options.append("    };")
        lines += [signature + " {", *options, "  }"] if options else [signature + ";"]
    return lines + ["}"]


def referenced(message):
    return [f.get("type_name") or f.get("value_type_name") for f in message["fields"]]


def reachable(service):
    """Full names of the messages that a service needs."""
    by_name = {m["full_name"]: m for m in PROTOCOL["messages"]}
    todo = [m[side] for m in service["methods"] for side in ("request", "response")]
    found = set()
    while todo:
        name = todo.pop()
        if name in by_name and name not in found:
            found.add(name)
            todo += [n for n in referenced(by_name[name]) if n]
    return found


def main():
    services = {s["full_name"]: s for s in PROTOCOL["services"]}
    authorization = reachable(services[AUTHORIZATION])
    owner = {"immudb.schema": "schema.proto"}

    def file_of(full_name, package):
        if package in owner:
            return owner[package]
        in_authorization = full_name == AUTHORIZATION or full_name in authorization
        return "authorization.proto" if in_authorization else "documents.proto"

    packages = sorted(PROTOCOL["packages"], key=len, reverse=True)
    package_of = lambda full_name: next(p for p in packages if full_name.startswith(p + "."))
    names = {m["full_name"] for m in PROTOCOL["messages"]}
    by_parent, top = {}, []
    for message in PROTOCOL["messages"]:
        parent = message["full_name"].rsplit(".", 1)[0]
        if parent in names:
            by_parent.setdefault(parent, []).append(message)
        else:
            top.append(message)

    for file in PROTOCOL["files"]:
        name, package = file["file"], file["package"]
        mine = lambda full_name: package_of(full_name) == package and file_of(full_name, package) == name
        lines = ["// Generated by proto/generate.py from proto/testdata/protocol.json. Do not edit.",
                 f'syntax = "{file["syntax"]}";', "", f"package {package};", ""]
        lines += [f'import "{i}";' for i in file["imports"]]
        for enum in PROTOCOL["enums"]:
            if mine(enum["full_name"]):
                values = sorted(enum["values"].items(), key=lambda item: item[1])
                lines += ["", f"enum {enum['name']} {{", *[f"  {k} = {v};" for k, v in values], "}"]
        for message in top:
            if mine(message["full_name"]):
                lines += ["", *message_lines(message, by_parent, package)]
        for service in PROTOCOL["services"]:
            if mine(service["full_name"]):
                lines += ["", *service_lines(service)]
        (HERE / "proto" / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
