//! The configuration file: TOML, a section per role, the flags' names as keys. Only its shape is looked at here; what a value
//! means is the same for a flag and for a key.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::{Place, Value, Values};
use super::{ConfigError, keys_of};
use crate::cli::Typed;

/// A longer file was named by mistake.
const FILE_MAX: u64 = 1 << 20;

/// What was typed for a role, with what its section of the configuration file adds.
pub(super) fn gather(typed: &Typed, section: &'static str) -> Result<Values, ConfigError> {
    let mut values = Values::typed(typed);
    if let Some(path) = typed.one("config") {
        File::open(path)?.read(section, &mut values)?;
    }
    Ok(values)
}

struct File {
    path: Arc<Path>,
    text: String,
}

impl File {
    fn open(path: &str) -> Result<Self, ConfigError> {
        let unreadable = |cause: &dyn std::fmt::Display| ConfigError(format!("--config: cannot read {path}: {cause}"));
        let length = fs::metadata(path).map_err(|cause| unreadable(&cause))?.len();
        if length > FILE_MAX {
            return Err(unreadable(&format_args!("{length} bytes long, expected at most {FILE_MAX}")));
        }
        let text = fs::read_to_string(path).map_err(|cause| unreadable(&cause))?;
        Ok(Self { path: Path::new(path).into(), text })
    }

    fn read(&self, wanted: &str, values: &mut Values) -> Result<(), ConfigError> {
        let document = DeTable::parse(&self.text).map_err(|error| {
            let message = error.message().replace('\n', ", ");
            self.wrong(error.span().unwrap_or_default(), &message)
        })?;
        for (section, content) in document.get_ref() {
            let name = section.get_ref().as_ref();
            let Some(known) = keys_of(name) else {
                return Err(self.wrong(section.span(), &format!("got `{name}`, expected a section [server] or [inter-server]")));
            };
            let DeValue::Table(table) = content.get_ref() else {
                return Err(self.wrong(section.span(), &format!("got a value `{name}`, expected a section [{name}]")));
            };
            for (key, value) in table {
                let text = key.get_ref().as_ref();
                let Some(name) = known.iter().find(|name| **name == text) else {
                    let message = format!("got the unknown key `{text}`, expected one of {}", known.join(", "));
                    return Err(self.wrong(key.span(), &message));
                };
                let found = self.values(section.get_ref(), name, value)?;
                if section.get_ref().as_ref() == wanted && !found.is_empty() {
                    values.add_weaker(name, found);
                }
            }
        }
        Ok(())
    }

    /// A text or a whole number, or, for what may be given several times, a list of them.
    fn values(&self, section: &str, name: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Value>, ConfigError> {
        let many = super::may_repeat(section, name);
        match value.get_ref() {
            DeValue::Array(array) if many => array.iter().map(|item| self.value(name, many, item)).collect(),
            _ => Ok(vec![self.value(name, many, value)?]),
        }
    }

    fn value(&self, name: &str, many: bool, value: &Spanned<DeValue<'_>>) -> Result<Value, ConfigError> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| number.to_string(), |n| n.to_string())
            }
            other => {
                let list = if many { " or a list of them" } else { "" };
                let message = format!("{name}: got a value of type {}, expected a text in quotes{list}", other.type_str());
                return Err(self.wrong(value.span(), &message));
            }
        };
        Ok(Value { text, place: Place::Line { file: Arc::clone(&self.path), line: self.line(value.span()) } })
    }

    fn wrong(&self, span: Range<usize>, message: &str) -> ConfigError {
        ConfigError(format!("{}:{}: {message}", self.path.display(), self.line(span)))
    }

    fn line(&self, span: Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}
