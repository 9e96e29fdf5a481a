//! RouterOS values as its REST API takes and gives them.
//!
//! In: whatever a client put into JSON (strings, numbers, booleans). Out: typed values, or the console's own
//! complaint naming the parameter. On the way back every value is a string.
//!
//! Observed on RouterOS 7.21 to 7.24 (published surveys of the REST API): booleans read back as `true`/`false`
//! and are taken as `yes`/`no` as well; item ids are `*` and upper-case hex; an enum or boolean that does not
//! match is refused with `input does not match any value of NAME`, a number outside its range with
//! `value of NAME out of range (A..B)`. The wording for a number that is no number is assumed.

use serde_json::Value;
use std::fmt;
use std::str::FromStr;

use crate::reply::ApiError;

/// An item's id: `*` followed by upper-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ItemId(pub u32);

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "*{:X}", self.0)
    }
}

/// The text was not `*` and hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an item id (such as *1F)")]
pub struct NotAnId(String);

impl From<ItemId> for String {
    fn from(id: ItemId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ItemId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}

impl FromStr for ItemId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        text.strip_prefix('*')
            .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .map(ItemId)
            .ok_or_else(|| NotAnId(text.to_owned()))
    }
}

/// The text of a JSON scalar, as RouterOS reads it; `None` for null, arrays and objects.
pub fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A boolean parameter: `yes`, `no`, `true` or `false`.
pub fn boolean(name: &str, text: &str) -> Result<bool, ApiError> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(ApiError::bad_request(format!("input does not match any value of {name}"))),
    }
}

/// A TCP port, 1 to 65535.
pub fn port(name: &str, text: &str) -> Result<u16, ApiError> {
    let number: u64 = text.parse().map_err(|_| invalid_number(name))?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ApiError::bad_request(format!("value of {name} out of range (1..65535)"))),
    }
}

/// A size in bytes: exact (`1073741824`) or with a binary suffix (`1G`, `1GiB`, `1024.0MiB`).
pub fn size_bytes(name: &str, text: &str) -> Result<u64, ApiError> {
    let invalid = || invalid_number(name);
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit: u64 = match suffix.trim_start_matches(' ') {
        "" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err(invalid()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| invalid())?;
    // Nine digits keep the product below 2^70, inside u128; more than that nobody writes.
    if fraction.is_empty() || fraction.len() > 9 || (unit == 1 && number.contains('.')) {
        return Err(invalid());
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| invalid())?);
    let parts: u128 = fraction.parse().map_err(|_| invalid())?;
    let bytes = u128::from(whole) * u128::from(unit) + parts * u128::from(unit) / scale;
    match u64::try_from(bytes) {
        // nvmet, like every Linux file, counts in signed 64-bit offsets.
        Ok(bytes) if bytes > 0 && i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(ApiError::bad_request(format!("value of {name} out of range (1..{})", i64::MAX))),
    }
}

fn invalid_number(name: &str) -> ApiError {
    ApiError::bad_request(format!("invalid value for argument {name}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_taken_in_bytes_and_with_binary_suffixes() {
        for (text, bytes) in [
            ("1073741824", 1 << 30),
            ("1G", 1 << 30),
            ("50.0GiB", 50 << 30),
            ("1.5M", 3 << 19),
            ("4097", 4097),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size_bytes("file-size", text).unwrap(), bytes, "{text}");
        }
        for text in ["", "0", "-1", "1X", "G", "1.5", "1e9", "9223372036854775808", "99999999T"] {
            assert!(size_bytes("file-size", text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_a_star_and_upper_case_hex() {
        assert_eq!(ItemId(31).to_string(), "*1F");
        assert_eq!("*1f".parse::<ItemId>().unwrap(), ItemId(31));
        for text in ["1F", "*", "*G", "*100000000", "%2A1F"] {
            assert!(text.parse::<ItemId>().is_err(), "{text}");
        }
    }

    #[test]
    fn booleans_and_ports_complain_in_the_consoles_words() {
        assert!(boolean("nvme-tcp-export", "yes").unwrap());
        assert_eq!(
            boolean("nvme-tcp-export", "maybe").unwrap_err().detail(),
            Some("input does not match any value of nvme-tcp-export")
        );
        assert_eq!(port("nvme-tcp-server-port", "4420").unwrap(), 4420);
        assert_eq!(
            port("nvme-tcp-server-port", "65536").unwrap_err().detail(),
            Some("value of nvme-tcp-server-port out of range (1..65535)")
        );
    }
}
