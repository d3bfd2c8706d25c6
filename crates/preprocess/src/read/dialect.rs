//! How the text of a table is divided into fields.

use encoding_rs::Encoding;
use mp4sr_pipeline::config::{Quoting, Source};

use super::decode;
use crate::{Error, Result};

/// The settings for tables of text. Empty ones are recognised from the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// The encoding; `None` means UTF-8, or UTF-16 with a byte order mark.
    pub encoding: Option<&'static Encoding>,
    /// The separator of columns; empty if it is not known yet.
    pub separator: String,
    pub quoting: Quoting,
    /// The character that escapes a quotation mark in a quoted field, if it is not doubled.
    pub escape: Option<u8>,
    /// The names of the columns, if no header line has them.
    pub names: Vec<String>,
    /// Whether numbers have a decimal comma.
    pub decimal_comma: bool,
}

impl Dialect {
    /// Reads the keys of `[source]`.
    pub fn new(source: &Source, items: bool) -> Result<Self> {
        let encoding = match source.encoding.as_str() {
            "" => None,
            name => Some(decode::encoding(name).ok_or_else(|| {
                Error::Setting(format!(
                    "`source.encoding` = {name:?} is not a known encoding; expected one such as \"utf-8\", \"latin-1\", \
                     \"windows-1252\", \"utf-16\", \"gbk\" or \"shift_jis\""
                ))
            })?),
        };
        let escape = match source.quote_escape.as_bytes() {
            [] => None,
            [byte] if byte.is_ascii_punctuation() && *byte != b'"' => Some(*byte),
            _ => {
                return Err(Error::Setting(format!(
                    "`source.quote_escape` = {:?} is not one ASCII punctuation character; expected \"\\\\\" or nothing",
                    source.quote_escape
                )));
            }
        };
        let separator = match source.separator.as_str() {
            "\\t" | "tab" => "\t".to_owned(),
            separator if separator.contains(['\n', '\r', '"']) => {
                return Err(Error::Setting(format!(
                    "`source.separator` = {separator:?} cannot separate columns; expected a character such as \",\" or several \
                     such as \"||\""
                )));
            }
            separator => separator.to_owned(),
        };
        let names = if items { &source.items_header } else { &source.interactions_header };
        Ok(Self {
            encoding,
            separator,
            quoting: source.quoting,
            escape,
            names: names.clone(),
            decimal_comma: source.decimal_comma,
        })
    }

    /// The separator if it is a single byte, which quoted fields require.
    pub fn byte(&self) -> Option<u8> {
        match self.separator.as_bytes() {
            [byte] => Some(*byte),
            _ => None,
        }
    }

    /// How fields are quoted. By default, a comma or a semicolon as the separator implies [`Quoting::Always`]; a separator of several bytes
    /// always implies [`Quoting::Never`].
    pub fn quotes(&self) -> Quoting {
        match (self.quoting, self.separator.as_str()) {
            (Quoting::Recognised, "," | ";") => Quoting::Always,
            (quoting, _) if self.byte().is_some() => quoting,
            _ => Quoting::Never,
        }
    }
}

/// The separator in words.
pub fn shown(separator: &str) -> &str {
    match separator {
        "\t" => "tabs",
        " " => "spaces",
        other => other,
    }
}
