from serving.runtime.error_messages import cause_of_death, first_line

GLOO = "Connection closed by peer [10.0.0.2]:5. This is typically caused by a remote worker crashing. GLHF!"
DEATH = (
    "The actor died unexpectedly before finishing this task.\n"
    "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. "
    "End of file.\nSome common causes include: (1) ..."
)
CREATION = """The actor died because of an error raised in its creation task, ray::Supervisor.__init__() (pid=1)
  File "main.py", line 792, in model_validate
pydantic_core._pydantic_core.ValidationError: 1 validation error for Config
  Value error, http.host

The above exception was the direct cause of the following exception:

ray::Supervisor.__init__() (pid=1, ip=10.0.0.2)
  File "config.py", line 292, in load_config
serving.errors.ConfigError: configuration: http.host 0.0.0.0 is reachable from outside"""


def test_an_error_is_its_type_and_its_first_line() -> None:
    assert first_line(ValueError("wrong\nTraceback and so on")) == "ValueError: wrong"
    assert first_line(TimeoutError()) == "TimeoutError"


def test_what_gloo_adds_to_every_error_is_left_out() -> None:
    assert first_line(RuntimeError(GLOO)) == "RuntimeError: Connection closed by peer [10.0.0.2]:5."


def test_an_error_of_another_process_is_told_by_its_cause() -> None:
    carried = RuntimeError("many lines")
    carried.cause = ValueError("the reason")  # type: ignore[attr-defined]
    assert first_line(carried) == "ValueError: the reason"


def test_a_death_is_told_without_the_list_of_common_causes() -> None:
    told = cause_of_death(RuntimeError(DEATH))
    assert told == "Worker unexpectedly exits with a connection error code 2. End of file."


def test_a_death_of_which_nothing_special_is_known_is_told_as_it_came() -> None:
    assert cause_of_death(RuntimeError("gone\naway")) == "gone away"


def test_an_actor_that_could_not_be_made_is_told_by_what_it_raised_last() -> None:
    told = cause_of_death(RuntimeError(CREATION))
    assert told == "ConfigError: configuration: http.host 0.0.0.0 is reachable from outside"


def test_a_reason_shows_no_credential_of_an_address() -> None:
    assert first_line(OSError("no answer from http://user:SECRET@host")) == "OSError: no answer from http://***@host"
    assert "SECRET" not in cause_of_death(RuntimeError("gone: s3://bucket/in?secret_key=SECRET"))
