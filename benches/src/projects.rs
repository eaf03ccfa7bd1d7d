//! Small programs, written as source into a directory, that a build has to compile: what it makes
//! prints a number that is known beforehand.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Modules of the Rust crate.
const MODULES: u64 = 8;
/// Functions in each module, and in each file of the C project.
const FUNCTIONS: u64 = 12;
/// Files of the C project, beside the one with `main` and the header.
const C_FILES: u64 = 40;

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What function `function` of part `part` adds.
fn term(part: u64, function: u64) -> u64 {
    (part * 31 + function * 7) % 101
}

/// What the programs of `parts` parts print.
fn total(parts: u64) -> u64 {
    (0..parts).flat_map(|part| (0..FUNCTIONS).map(move |function| term(part, function))).sum()
}

/// A crate without dependencies, of a few modules. Returns what its program prints.
pub fn rust_crate(dir: &Path) -> Result<String> {
    fs::create_dir_all(dir.join("src"))?;
    // A workspace of its own: nothing above the directory may take it in.
    put(
        &dir.join("Cargo.toml"),
        "[package]\nname = \"built\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n",
    )?;
    let mut main = String::new();
    let mut calls = String::new();
    for part in 0..MODULES {
        let mut module = String::from("use std::collections::BTreeMap;\n\n");
        for function in 0..FUNCTIONS {
            let value = term(part, function);
            let _ = write!(
                module,
                "/// Adds {value}.\npub fn add_{function}(seen: &mut BTreeMap<String, u64>) {{\n    \
                 let name = format!(\"{{}}_{{}}\", {part}, {function});\n    \
                 *seen.entry(name).or_default() += {value};\n}}\n\n"
            );
        }
        let _ = writeln!(module, "pub fn all(seen: &mut BTreeMap<String, u64>) {{");
        for function in 0..FUNCTIONS {
            let _ = writeln!(module, "    add_{function}(seen);");
        }
        module.push_str("}\n");
        put(&dir.join(format!("src/part_{part}.rs")), &module)?;
        let _ = writeln!(main, "mod part_{part};");
        let _ = writeln!(calls, "    part_{part}::all(&mut seen);");
    }
    let _ = write!(
        main,
        "\nfn main() {{\n    let mut seen = std::collections::BTreeMap::new();\n{calls}    \
         println!(\"{{}}\", seen.values().sum::<u64>());\n}}\n"
    );
    put(&dir.join("src/main.rs"), &main)?;
    Ok(total(MODULES).to_string())
}

/// A C project of some 40 files and a makefile. Returns what its program prints.
pub fn c_project(dir: &Path) -> Result<String> {
    fs::create_dir_all(dir)?;
    let mut header = String::from("#ifndef PARTS_H\n#define PARTS_H\n");
    let mut main = String::from(
        "#include <stdio.h>\n#include \"parts.h\"\n\nint main(void)\n{\n    unsigned long sum = 0;\n",
    );
    for part in 0..C_FILES {
        let mut source = String::from("#include \"parts.h\"\n\n");
        for function in 0..FUNCTIONS {
            let value = term(part, function);
            let _ = write!(
                source,
                "static unsigned long add_{function}(unsigned long sum)\n{{\n    \
                 return sum + {value}ul;\n}}\n\n"
            );
        }
        let _ = write!(source, "unsigned long part_{part}(unsigned long sum)\n{{\n");
        for function in 0..FUNCTIONS {
            let _ = writeln!(source, "    sum = add_{function}(sum);");
        }
        source.push_str("    return sum;\n}\n");
        put(&dir.join(format!("part_{part:02}.c")), &source)?;
        let _ = writeln!(header, "unsigned long part_{part}(unsigned long sum);");
        let _ = writeln!(main, "    sum = part_{part}(sum);");
    }
    header.push_str("#endif\n");
    main.push_str("    printf(\"%lu\\n\", sum);\n    return 0;\n}\n");
    put(&dir.join("parts.h"), &header)?;
    put(&dir.join("main.c"), &main)?;
    put(
        &dir.join("Makefile"),
        "SOURCES := $(wildcard *.c)\nOBJECTS := $(SOURCES:.c=.o)\n\n\
         built: $(OBJECTS)\n\t$(CC) -o $@ $(OBJECTS)\n\n\
         %.o: %.c parts.h\n\t$(CC) -O1 -Wall -c -o $@ $<\n",
    )?;
    Ok(total(C_FILES).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Run, installed};

    #[test]
    fn what_is_built_prints_what_was_foretold() {
        let dir = tempfile::tempdir().unwrap();
        let (rust, c) = (dir.path().join("rust"), dir.path().join("c"));
        let expected = rust_crate(&rust).unwrap();
        if installed("rustc") {
            Run::new("rustc").args(["-o", "built", "src/main.rs"]).cwd(&rust).ok().unwrap();
            assert_eq!(Run::new(rust.join("built")).ok().unwrap().text(), expected);
        }
        let expected = c_project(&c).unwrap();
        if installed("make") && installed("cc") {
            Run::new("make").arg("-s").cwd(&c).ok().unwrap();
            assert_eq!(Run::new(c.join("built")).ok().unwrap().text(), expected);
        }
    }
}
