"""The prediction store in Redis: the only file that knows the keys and the guard.

One hash a listing, `<prefix>{<listing_id>}`: one field a task, and fields with an underscore for the rest (`_arguments`).
Whole batches travel in one script call, so the cost is one round trip, and no reader sees half of an update; in a cluster it
is a call for each listing, and a round trip to each node.

The guard: an update is written when its (version, model epoch) is not below what is stored; a delete when its version
is not below; and an update over a tombstone only when its version is above. So a write that is done again, or comes
late, or comes from a process that was replaced meanwhile, changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from consumer.errors import DependencyUnavailable, SettingsError
from consumer.predictions import Predictions, Recall, packed
from consumer.records import CoverUse, Enriched, State, Tombstone
from consumer.redis_client import open_redis
from consumer.redis_errors import RIGHTS, Misconfigured
from consumer.redis_server import Script
from consumer.settings import RedisSettings
from consumer.task_prediction import TaskPrediction

# What the scripts here and the crash marks run, with as many arguments as each takes at least.
_COMMANDS: Final = ("HGET KEY x", "HMGET KEY x", "HGETALL KEY", "HSET KEY x x", "HLEN KEY", "HKEYS KEY", "HDEL KEY x")

# KEYS: listings. ARGV: model epoch, then the content hash of each. Returns index and model, engine, answers of those that match.
_UNCHANGED: Final = Script("""
local found = {}
for i, key in ipairs(KEYS) do
  local stored = redis.call('HMGET', key, '_content', '_model_epoch', '_deleted', '_model', '_engine', '_compact')
  if stored[1] == ARGV[i + 1] and stored[2] == ARGV[1] and not stored[3] then
    found[#found + 1] = i
    found[#found + 1] = {stored[4], stored[5], stored[6]}
  end
end
return found
""")

# KEYS: listings. ARGV: seconds to live (0: for ever), 1 to refuse equal updates, then for each listing five: its version, its
# model epoch (empty: a delete), the number of fields that it is to have, fields and values in turn as MessagePack's strings (one
# argument instead of forty, each of which costs client and server alike), and what stands in `_content` and `_compact` where the
# fields of the tasks are in the store already and were left out (else empty). Returns index and hash of those that were refused,
# and index and nothing of those whose left-out fields are not what was thought.
#
# Versions are compared as decimal text: Lua's numbers are doubles and confuse 2^53 and 2^53+1.
# HSET comes before the removal of fields that are no longer said: a full store refuses HSET as the script's first write
# and nothing is lost; after a DEL it would no longer refuse, and grow above its limit.
_WRITE: Final = Script("""
local function below(a, b)
  local a_negative, b_negative = string.sub(a, 1, 1) == '-', string.sub(b, 1, 1) == '-'
  if a_negative ~= b_negative then return a_negative end
  if a_negative then a, b = string.sub(b, 2), string.sub(a, 2) end
  if #a ~= #b then return #a < #b end
  return a < b
end

local function unpacked(strings)
  if cmsgpack then return cmsgpack.unpack(strings) end
  local texts, at = {}, 1
  while at < #strings do  -- fakeredis has no cmsgpack: 0xdb, length in four bytes, text
    local a, b, c, d = string.byte(strings, at + 1, at + 4)
    local last = at + 4 + ((a * 256 + b) * 256 + c) * 256 + d
    texts[#texts + 1], at = string.sub(strings, at + 5, last), last + 1
  end
  return unpack(texts)
end

local ttl_seconds, only_above, answers = ARGV[1], ARGV[2] == '1', {}

local function refuses(stored, version, epoch)
  local version0, epoch0, deleted = stored[1], stored[2], stored[3]
  if not version0 or not string.match(version0, '^-?%d+$') then return false end
  if below(version, version0) then return true end
  if epoch == '' or below(version0, version) then return false end
  if deleted or below(epoch, epoch0 or '0') then return true end
  return only_above and not below(epoch0 or '0', epoch)
end

for i, key in ipairs(KEYS) do
  local version, epoch, fields, strings, left_out = unpack(ARGV, 5 * i - 2, 5 * i + 2)
  local stored = redis.call('HMGET', key, '_version', '_model_epoch', '_deleted', '_content', '_compact')
  local held = (stored[4] or '') .. (stored[5] or '')
  if refuses(stored, version, epoch) then
    answers[#answers + 1] = i
    answers[#answers + 1] = redis.call('HGETALL', key)
  elseif left_out ~= '' and (held ~= left_out or redis.call('HLEN', key) ~= tonumber(fields)) then
    answers[#answers + 1] = i
    answers[#answers + 1] = {}
  else
    redis.call('HSET', key, unpacked(strings))
    if left_out == '' and redis.call('HLEN', key) ~= tonumber(fields) then
      local kept, said = {}, {unpacked(strings)}
      for field = 1, #said, 2 do kept[said[field]] = true end
      for _, field in ipairs(redis.call('HKEYS', key)) do
        if not kept[field] then redis.call('HDEL', key, field) end
      end
    end
    if ttl_seconds == '0' then redis.call('PERSIST', key) else redis.call('EXPIRE', key, ttl_seconds) end
  end
end
return answers
""")

# ARGV: a key of ours, then commands. Returns those that the ACL user may not run. Nothing is run; Redis before 7.0 cannot say.
_FORBIDDEN: Final = Script("""
local forbidden = {}
for i = 2, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '%S+') do words[#words + 1] = word == 'KEY' and ARGV[1] or word end
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(words)) then forbidden[#forbidden + 1] = words[1] end
end
return forbidden
""")


class PredictionStore:
    """Reads and writes listings' predictions, a batch at a time. Safe to share between threads.

    Nothing connects before the first call. Every call may block as `redis_client` says and raises DependencyUnavailable when
    the store does not answer, refuses (loading, read-only, out of memory) or holds something that is not a prediction.

    Args:
        url, ca, socket_timeout_s: as `open_redis` takes them.
        key_prefix: what precedes `{<listing_id>}`.
        ttl_seconds: how long an entry lives after its last write; None is for ever.

    Raises:
        SettingsError: the URL cannot be read.
    """

    def __init__(
        self, url: str, *, key_prefix: str, ttl_seconds: int | None, ca: str | None = None, socket_timeout_s: float = 5.0
    ) -> None:
        self._key_prefix = key_prefix
        self._ttl_seconds = ttl_seconds or 0
        self._client = open_redis(url, ca=ca, socket_timeout_s=socket_timeout_s)

    def unchanged(self, expected: Mapping[str, str], *, model_epoch: int, recall: Recall) -> dict[str, Enriched]:
        """The stored predictions that still hold: same content, same model, not deleted. One round trip.

        Version and cover are for whoever asks to say; the states have 0 and NONE.

        Args:
            expected: listing id to the hash of what the model would see.
            recall: makes answers of their compact form (`BatchEncoder.recall`).
        """
        if not expected:
            return {}
        listing_ids = list(expected)
        hashes = [(content,) for content in expected.values()]
        found = self._client.run(_UNCHANGED, self._keys(listing_ids), [str(model_epoch)], hashes)
        known = dict(zip([listing_ids[index - 1] for index in found[::2]], found[1::2], strict=True))
        states: dict[str, Enriched] = {}
        recalled = recall([compact or b"" for _, _, compact in known.values()]) if known else []
        for (listing_id, (model, engine, _)), predictions in zip(known.items(), recalled, strict=True):
            if model is None or predictions is None:
                continue  # somebody else wrote there, or an earlier version of this service: predicting again repairs it
            content = expected[listing_id]
            said_by = engine.decode() if engine else None
            states[listing_id] = Enriched(listing_id, 0, content, predictions, model.decode(), model_epoch, engine=said_by)
        return states

    def write(self, states: Sequence[State], *, now_ms: int, only_above: bool = False) -> list[State]:
        """Writes the batch under the guard. One round trip; may be done again without harm.

        Answers that were made of what the store holds are not sent again, unless it no longer holds them: then, hardly ever,
        there is a second round trip.

        Args:
            states: at most one for a listing.
            now_ms: since the epoch, for `_updated_ms`.
            only_above: an update does not replace one of the same version and model epoch either (`rebuild`).

        Returns:
            For each input, in order, what the store holds after the call: the very same object when it was written,
            else the newer state that was not overwritten.
        """
        listing_ids = [state.listing_id for state in states]
        assert len(set(listing_ids)) == len(listing_ids), "a batch holds a listing once"
        shared = [str(self._ttl_seconds), "1" if only_above else "0"]
        held, todo, whole = list(states), list(range(len(states))), False
        while todo:
            keys = self._keys([listing_ids[place] for place in todo])
            arguments = [_arguments(states[place], str(now_ms), whole=whole) for place in todo]
            answers = self._client.run(_WRITE, keys, shared, arguments)
            answered = [(todo[index - 1], items) for index, items in zip(answers[::2], answers[1::2], strict=True)]
            for place, items in answered:
                if items:
                    held[place] = self._stored_state(listing_ids[place], _pairs(items))
            todo, whole = [place for place, items in answered if not items], True
        return held

    def read(self, listing_ids: Sequence[str]) -> list[State | None]:
        """What is stored for each, in order; None where there is nothing. One round trip."""
        if not listing_ids:
            return []
        hashes = self._client.pipelined([("HGETALL", key) for key in self._keys(listing_ids)])
        return [
            self._stored_state(listing_id, fields) if fields else None
            for listing_id, fields in zip(listing_ids, hashes, strict=True)
        ]

    def check(self) -> None:
        """Returns when the store answers and its user may do all that the service does. Changes nothing.

        Raises:
            DependencyUnavailable: it does not answer, or refuses for now.
            SettingsError: it refuses for a reason that waiting does not change: no password, a right that is missing …
        """
        commands = (*self._client.needs, *_COMMANDS, "EXPIRE KEY 1" if self._ttl_seconds else "PERSIST KEY")
        key, other = self._keys(["a", "b"])
        try:
            for forbidden in self._client.everywhere(_FORBIDDEN, [key, *commands]):
                if forbidden:
                    wanted = f"{', '.join(name.decode() for name in forbidden)} on {self._key_prefix}*"
                    raise SettingsError(f"redis.url: expected a user who may run {wanted}, found one who may not; {RIGHTS}")
            self._client.run(_UNCHANGED, [key, other], [""], [("",), ("",)])  # two slots: a cluster under redis:// says so
        except Misconfigured as error:
            raise SettingsError(f"redis.url: {error.reason}") from error

    def close(self) -> None:
        """Closes all connections; a later call would open new ones."""
        self._client.close()

    def _keys(self, listing_ids: Iterable[str]) -> list[str]:
        return [f"{self._key_prefix}{{{listing_id}}}" for listing_id in listing_ids]

    def _stored_state(self, listing_id: str, fields: Mapping[bytes, bytes]) -> State:
        try:
            return _state(listing_id, fields)
        except ValueError as error:
            key = self._keys([listing_id])[0]
            raise DependencyUnavailable("redis", f"{key} holds what this service did not write: {error}") from error


def open_store(redis: RedisSettings, *, socket_timeout_s: float = 5.0) -> PredictionStore:
    """The store that the settings name. Raises: SettingsError."""
    return PredictionStore(
        redis.url.get_secret_value(),
        key_prefix=redis.key_prefix,
        ttl_seconds=redis.ttl_seconds,
        ca=redis.ca,
        socket_timeout_s=socket_timeout_s,
    )


def _arguments(state: State, now_ms: str, *, whole: bool) -> list[str | bytes]:
    """What `_WRITE` takes for one listing. `whole`: its tasks' fields, too, where the store should have them."""
    if isinstance(state, Tombstone):
        return [str(state.version), "", "2", _TOMBSTONE + packed(str(state.version)), ""]
    answers = Predictions.of(state.predictions)
    left_out = answers.recalled and not whole
    head, fields = _head(state.model, state.model_epoch, state.cover, state.engine)
    strings = [head, _VERSION, packed(str(state.version)), _CONTENT, packed(state.content), _UPDATED, packed(now_ms)]
    if answers.compact:
        fields += 1
        strings += (_COMPACT, packed(answers.compact))
    if not left_out:
        strings.append(answers.fields)
    expected = state.content.encode() + answers.compact if left_out else b""
    return [str(state.version), str(state.model_epoch), str(fields + answers.count), b"".join(strings), expected]


_TOMBSTONE: Final = b"".join(map(packed, ("_deleted", "1", "_version")))
_VERSION, _CONTENT, _UPDATED, _COMPACT = map(packed, ("_version", "_content", "_updated_ms", "_compact"))


@lru_cache(maxsize=64)
def _head(model: str, epoch: int, cover: CoverUse, engine: str | None) -> tuple[bytes, int]:
    """The fields that many listings have in common, and how many there are beside the tasks' (`_compact` not counted)."""
    items = ["_model", model, "_model_epoch", str(epoch)]
    if cover is not CoverUse.NONE:
        items += ("_cover", cover.value)
    if engine is not None:
        items += ("_engine", engine)
    return b"".join(map(packed, items)), len(items) // 2 + 3


def _state(listing_id: str, fields: Mapping[bytes, bytes]) -> State:
    """Raises: ValueError, when the hash is not one that `_arguments` describes."""
    try:
        version = int(fields[b"_version"])
        if b"_deleted" in fields:
            return Tombstone(listing_id, version)
        return Enriched(
            listing_id=listing_id,
            version=version,
            content=fields[b"_content"].decode(),
            predictions={
                name.decode(): TaskPrediction.from_json(value) for name, value in fields.items() if not name.startswith(b"_")
            },
            model=fields[b"_model"].decode(),
            model_epoch=int(fields[b"_model_epoch"]),
            cover=CoverUse(fields.get(b"_cover", b"NONE").decode()),
            engine=fields[b"_engine"].decode() if b"_engine" in fields else None,
        )
    except KeyError as error:
        raise ValueError(f"expected the field {error.args[0].decode()}, found none") from error


def _pairs(items: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(items[::2], items[1::2], strict=True))
