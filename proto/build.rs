//! Compiles every `proto/*.proto` with protox (no `protoc` needed) into Rust modules, one per package, and one file
//! descriptor set for reflection. The set is encoded by [`protox::Compiler`] itself, because the plain `prost_types`
//! structs drop the HTTP options.

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// What the generator puts into the default body of a service method.
const STUB_TEXT: &str = "Not yet implemented";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", root.display());
    println!("cargo::rerun-if-changed=build.rs");

    let mut files = fs::read_dir(&root)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();

    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(false).open_files(&files)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // For clients: without what nodes ask each other.
    let mut of_clients = protox::Compiler::new([&root])?;
    let is_of_clients = |path: &&PathBuf| !path.ends_with("peer.proto");
    of_clients.include_imports(true).include_source_info(false).open_files(files.iter().filter(is_of_clients))?;
    fs::write(out.join("client_descriptors.bin"), of_clients.encode_file_descriptor_set())?;

    // Comments become doc comments of the generated code.
    let descriptors = compiler.include_source_info(true).file_descriptor_set();
    let method_names: HashMap<String, String> = descriptors
        .file
        .iter()
        .flat_map(|file| &file.service)
        .flat_map(|service| &service.method)
        .map(|method| (method.name().to_lowercase(), method.name().to_owned()))
        .collect();
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;

    for package in ["immudb.schema.rs", "immudb.model.rs"] {
        let path = out.join(package);
        fs::write(&path, name_stubs(&fs::read_to_string(&path)?, &method_names))?;
    }
    Ok(())
}

/// Lets every default method body answer with the name of the method it stands for.
fn name_stubs(generated: &str, method_names: &HashMap<String, String>) -> String {
    let mut function = "";
    let mut named = String::with_capacity(generated.len());
    for line in generated.lines() {
        if let Some((_, rest)) = line.split_once("async fn ") {
            function = rest.split(['(', '<']).next().unwrap_or(rest);
        }
        if line.contains(STUB_TEXT) {
            let key = function.replace('_', "").to_lowercase();
            let name = method_names.get(&key).map_or(function, String::as_str);
            named.push_str(&line.replace(STUB_TEXT, &format!("{name} is not implemented")));
        } else {
            named.push_str(line);
        }
        named.push('\n');
    }
    named
}
