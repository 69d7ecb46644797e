//! Just enough XML to read what routers write: tags without their prefixes and attributes, text with the predefined
//! entities. Tolerant, since routers' XML often is not; never fails, and what makes no sense yields nothing.

use std::borrow::Cow;

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token<'a> {
    /// `<name …>`; an empty element yields a [`Token::Close`] after it.
    Open(&'a str),
    /// `</name>`.
    Close(&'a str),
    /// Text, trimmed, never empty.
    Text(Cow<'a, str>),
}

/// Takes a document apart.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    rest: &'a str,
    /// An empty element's end, still to be told.
    close: Option<&'a str>,
}

/// Tokens of a document.
pub fn tokens(document: &str) -> Tokens<'_> {
    Tokens { rest: document, close: None }
}

impl<'a> Tokens<'a> {
    /// What lies before `end`, and takes both off; everything where there is no end.
    fn until(&mut self, end: &str) -> &'a str {
        let (inside, rest) = self.rest.split_once(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        inside
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        if let Some(name) = self.close.take() {
            return Some(Token::Close(name));
        }
        loop {
            if self.rest.is_empty() {
                return None;
            }
            if !self.rest.starts_with('<') {
                let (text, rest) = self.rest.split_at(self.rest.find('<').unwrap_or(self.rest.len()));
                self.rest = rest;
                match text.trim() {
                    "" => continue,
                    text => return Some(Token::Text(unescape(text))),
                }
            }
            if let Some(rest) = self.rest.strip_prefix("<!--") {
                self.rest = rest;
                self.until("-->");
            } else if let Some(rest) = self.rest.strip_prefix("<![CDATA[") {
                self.rest = rest;
                match self.until("]]>").trim() {
                    "" => {}
                    text => return Some(Token::Text(text.into())),
                }
            } else {
                self.rest = &self.rest[1..];
                let tag = self.until(">");
                if let Some(name) = tag.strip_prefix('/') {
                    return Some(Token::Close(local(name)));
                }
                if !tag.starts_with(['?', '!']) {
                    let name = local(tag);
                    self.close = tag.ends_with('/').then_some(name);
                    return Some(Token::Open(name));
                }
            }
        }
    }
}

/// A tag's name without its prefix.
fn local(tag: &str) -> &str {
    let name = tag.split(|c: char| c.is_whitespace() || c == '/').next().unwrap_or_default();
    name.rsplit(':').next().unwrap_or_default()
}

/// The text of the first element of this name.
pub fn text_of<'a>(document: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let mut tokens = tokens(document);
    tokens.find(|token| *token == Token::Open(name))?;
    match tokens.next()? {
        Token::Text(text) => Some(text),
        Token::Close(_) => Some("".into()),
        Token::Open(_) => None,
    }
}

/// Text as it may stand in an element.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    const ENTITIES: [(&str, &str); 5] =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    ENTITIES.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn routers_documents_are_read() {
        let document = "<?xml version='1.0'?><!DOCTYPE x><s:a u=\"v\">\n <b/> <!-- <c>no</c> --><u:c> 1 &amp; 2 </u:c>\
                        <d><![CDATA[<x>]]></d></s:a>";
        let all: Vec<_> = tokens(document).collect();
        use Token::*;
        assert_eq!(
            all,
            [
                Open("a"),
                Open("b"),
                Close("b"),
                Open("c"),
                Text("1 & 2".into()),
                Close("c"),
                Open("d"),
                Text("<x>".into()),
                Close("d"),
                Close("a")
            ]
        );
        assert_eq!(text_of(document, "c").as_deref(), Some("1 & 2"));
        assert_eq!(text_of(document, "b").as_deref(), Some(""));
        assert_eq!(text_of(document, "a"), None);
        assert_eq!(text_of("<c", "c"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_run_on(text in "[<>/!a-c&;\\-\\[\\]? :é]{0,60}") {
            prop_assert!(tokens(&text).count() <= 2 * text.len());
        }

        #[test]
        fn escaped_text_reads_back(text in "[a-z<>&;é]{1,20}") {
            let document = format!("<a>{}</a>", escape(&text));
            prop_assert!(text_of(&document, "a").as_deref() == Some(&*text));
        }
    }
}
