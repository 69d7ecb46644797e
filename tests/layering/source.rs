//! Reads Rust sources as far as the table test needs: tokens, test items left out, and resolved paths.

use std::collections::{HashMap, HashSet};

// ---- tokens ---------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub text: String,
    pub line: usize,
    pub word: bool,
}

/// Rust's tokens without comments, and with every string, character and lifetime left out.
pub fn tokens(source: &str) -> Vec<Token> {
    let s: Vec<char> = source.chars().collect();
    let at = |i: usize| s.get(i).copied().unwrap_or('\0');
    let mut out = Vec::new();
    let (mut i, mut line) = (0, 1);
    let quoted = |mut i: usize, line: &mut usize| {
        while i < s.len() && s[i] != '"' {
            if s[i] == '\\' {
                i += 1;
            }
            if i < s.len() && s[i] == '\n' {
                *line += 1;
            }
            i += 1;
        }
        i + 1
    };
    while i < s.len() {
        let c = s[i];
        if c == '\n' {
            line += 1;
            i += 1;
        } else if c.is_whitespace() {
            i += 1;
        } else if c == '/' && at(i + 1) == '/' {
            while i < s.len() && s[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            while i < s.len() {
                match (s[i], at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    (c, _) => {
                        line += usize::from(c == '\n');
                        i += 1;
                    }
                }
                if depth == 0 {
                    break;
                }
            }
        } else if c == '"' {
            i = quoted(i + 1, &mut line);
        } else if c == '\'' {
            if at(i + 1) == '\\' {
                i += 3;
                while i < s.len() && s[i] != '\'' {
                    i += 1;
                }
                i += 1;
            } else if at(i + 2) == '\'' {
                i += 3;
            } else {
                i += 1;
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
            }
        } else if c.is_alphanumeric() || c == '_' {
            let start = i;
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            let text: String = s[start..i].iter().collect();
            let hashes = s[i..].iter().take_while(|c| **c == '#').count();
            if matches!(text.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                i += hashes + 1;
                while i < s.len() && !(s[i] == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
                    line += usize::from(s[i] == '\n');
                    i += 1;
                }
                i += 1 + hashes;
            } else if matches!(text.as_str(), "b" | "c") && at(i) == '"' {
                i = quoted(i + 1, &mut line);
            } else if text == "r" && hashes == 1 {
                i += 1; // a raw identifier: the next round reads its name
            } else {
                out.push(Token { text, line, word: true });
            }
        } else if c == ':' && at(i + 1) == ':' {
            out.push(Token { text: "::".into(), line, word: false });
            i += 2;
        } else {
            out.push(Token { text: c.to_string(), line, word: false });
            i += 1;
        }
    }
    out
}

/// The index just past the bracket that closes the one at `open`.
pub fn past_group(t: &[Token], open: usize) -> usize {
    let mut depth = 0_i32;
    for (i, token) in t.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    t.len()
}

pub fn text(t: &[Token], i: usize) -> &str {
    t.get(i).map_or("", |t| t.text.as_str())
}

/// Leaves out items under `#[cfg(test)]`; also returns the names of modules in other files that are left out that way.
pub fn without_tests(t: &[Token]) -> (Vec<Token>, HashSet<String>) {
    let (mut out, mut modules, mut i) = (Vec::new(), HashSet::new(), 0);
    while i < t.len() {
        let inner = text(t, i) == "#" && text(t, i + 1) == "!" && text(t, i + 2) == "[";
        let open = i + 1 + usize::from(inner);
        if text(t, i) != "#" || text(t, open) != "[" {
            out.push(t[i].clone());
            i += 1;
            continue;
        }
        let end = past_group(t, open);
        let words: Vec<&str> = t[open + 1..end - 1].iter().map(|t| t.text.as_str()).collect();
        let tests_only = words.starts_with(&["cfg", "(", "test", ")"])
            || words.starts_with(&["cfg", "(", "all", "(", "test", ","])
            || words.starts_with(&["cfg", "(", "all", "(", "test", ")"]);
        if !tests_only {
            out.extend_from_slice(&t[i..end]);
            i = end;
            continue;
        }
        if inner {
            return (Vec::new(), modules);
        }
        i = end;
        while text(t, i) == "#" && text(t, i + 1) == "[" {
            i = past_group(t, i + 1);
        }
        if text(t, i) == "pub" {
            i += 1;
            if text(t, i) == "(" {
                i = past_group(t, i);
            }
        }
        if text(t, i) == "mod" && text(t, i + 2) == ";" {
            modules.insert(text(t, i + 1).to_owned());
        }
        // these end at their semicolon, every other item at its closing brace if it has one
        let to_semicolon = matches!(text(t, i), "use" | "const" | "static" | "type" | "let") && text(t, i + 1) != "fn";
        while i < t.len() {
            match text(t, i) {
                ";" => {
                    i += 1;
                    break;
                }
                "{" if !to_semicolon => {
                    i = past_group(t, i);
                    break;
                }
                "(" | "[" | "{" => i = past_group(t, i),
                _ => i += 1,
            }
        }
    }
    (out, modules)
}

// ---- paths ----------------------------------------------------------------------------------------------------------

/// A path as the compiler would see it, from `crate`, `std` or another crate on.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    pub path: Vec<String>,
    pub line: usize,
    pub glob: bool,
}

impl Named {
    /// As written, from the root on.
    pub fn text(&self) -> String {
        self.path.join("::") + if self.glob { "::*" } else { "" }
    }

    /// The path is `of` or goes on from it; for a glob, also when it brings `of` into scope.
    pub fn reaches(&self, of: &str) -> bool {
        let of: Vec<&str> = of.split("::").collect();
        let n = of.len().min(self.path.len());
        (self.path.len() >= of.len() || self.glob) && self.path[..n].iter().zip(&of).all(|(a, b)| a == b)
    }
}

/// One use tree: appends its paths to `out` with the name each brings into scope, returns the index just past it.
fn use_tree(t: &[Token], mut i: usize, prefix: &[String], out: &mut Vec<(Named, String)>) -> usize {
    let mut path = prefix.to_vec();
    let line = t.get(i).map_or(0, |t| t.line);
    loop {
        match text(t, i) {
            "::" => i += 1,
            "{" => {
                let end = past_group(t, i);
                i += 1;
                while i < end - 1 {
                    i = use_tree(&t[..end - 1], i, &path, out);
                    if text(t, i) == "," {
                        i += 1;
                    }
                }
                return end;
            }
            "*" => {
                out.push((Named { path, line, glob: true }, String::new()));
                return i + 1;
            }
            "self" if !path.is_empty() => i += 1,
            word if t.get(i).is_some_and(|t| t.word) && word != "as" => {
                path.push(word.to_owned());
                i += 1;
            }
            _ => break,
        }
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if text(t, i) == "as" {
        name = text(t, i + 1).to_owned();
        i += 2;
    }
    if !path.is_empty() {
        out.push((Named { path, line, glob: false }, name));
    }
    i.max(1)
}

/// Every path a file names, resolved; `module` is the file's own path under `crate`.
pub fn paths(t: &[Token], module: &[String]) -> Vec<Named> {
    let mut found: Vec<(Named, Vec<String>)> = Vec::new();
    let mut scope: HashMap<String, (Vec<String>, Vec<String>)> = HashMap::new();
    let mut inside = module.to_vec();
    let mut closes = Vec::new();
    let mut i = 0;
    while i < t.len() {
        if closes.last() == Some(&i) {
            closes.pop();
            inside.pop();
        }
        let after_path = i > 0 && text(t, i - 1) == "::";
        if text(t, i) == "mod" && t.get(i + 1).is_some_and(|t| t.word) && text(t, i + 2) == "{" {
            closes.push(past_group(t, i + 2) - 1);
            inside.push(text(t, i + 1).to_owned());
            i += 3;
        } else if text(t, i) == "use" && text(t, i + 1) != "<" && !after_path {
            let mut tree = Vec::new();
            let end = use_tree(t, i + 1, &[], &mut tree);
            for (named, name) in tree {
                if !name.is_empty() && name != "_" {
                    scope.insert(name, (named.path.clone(), inside.clone()));
                }
                found.push((named, inside.clone()));
            }
            i = end.max(i + 1);
        } else if t[i].word && text(t, i + 1) == "::" && !(after_path && i > 1 && t[i - 2].word) {
            let line = t[i].line;
            let mut path = vec![t[i].text.clone()];
            while text(t, i + 1) == "::" && t.get(i + 2).is_some_and(|t| t.word) {
                path.push(t[i + 2].text.clone());
                i += 2;
            }
            found.push((Named { path, line, glob: false }, inside.clone()));
            i += 1;
        } else {
            i += 1;
        }
    }
    found.into_iter().map(|(named, inside)| Named { path: resolve(&named.path, &inside, &scope, 8), ..named }).collect()
}

/// Follows `self`, `super` and names that a `use` brought into scope.
fn resolve(
    path: &[String],
    inside: &[String],
    scope: &HashMap<String, (Vec<String>, Vec<String>)>,
    rounds: usize,
) -> Vec<String> {
    let absolute = |up: usize, rest: &[String]| {
        let stay = &inside[..inside.len().saturating_sub(up)];
        [&["crate".to_owned()], stay, rest].concat()
    };
    match path[0].as_str() {
        "crate" | "peervpn" => [&["crate".to_owned()], &path[1..]].concat(),
        "std" | "core" | "alloc" => [&["std".to_owned()], &path[1..]].concat(),
        "self" => absolute(0, &path[1..]),
        "super" => {
            let up = path.iter().take_while(|s| *s == "super").count();
            absolute(up, &path[up..])
        }
        name => match scope.get(name) {
            Some((to, there)) if rounds > 0 && to[0] != name => {
                [resolve(to, there, scope, rounds - 1), path[1..].to_vec()].concat()
            }
            _ => path.to_vec(),
        },
    }
}
