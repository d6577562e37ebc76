"""The check of skips, in a pytest of its own."""

import pytest

from tests.support.skips import NEEDS_CUDA

pytest_plugins = ["pytester"]

CONFTEST = "from tests.support.skips import pytest_configure\n"


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("GANGWAY_CI", "1")
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    return pytester


def test_a_skip_for_any_reason_fails_the_run_and_is_named(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        test_it="""
        import pytest

        def test_that_passes(): pass

        @pytest.mark.skipif(True, reason="there is no browser")
        def test_in_a_browser(): pass

        def test_with_root(): pytest.skip("takes root")
        """
    )
    run = inner.runpytest_inprocess()
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.stdout.fnmatch_lines(
        [
            "*skips that are not allowed in CI*",
            "test_it.py::test_in_a_browser: there is no browser",
            "test_it.py::test_with_root: takes root",
        ]
    )


def test_a_whole_file_that_is_skipped_fails_the_run(inner: pytest.Pytester) -> None:
    inner.makepyfile(test_it="import pytest\npytest.importorskip('no_such_module', reason='not installed')")
    assert inner.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_what_the_machine_lacks_may_be_skipped_and_a_known_failure_is_no_skip(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.skipif(True, reason={NEEDS_CUDA!r})
        def test_on_a_gpu(): pass

        @pytest.mark.xfail
        def test_that_is_known_to_fail(): assert False
        """
    )
    run = inner.runpytest_inprocess()
    run.assert_outcomes(skipped=1, xfailed=1)
    assert run.ret == pytest.ExitCode.OK


def test_a_failure_stays_a_failure(inner: pytest.Pytester) -> None:
    inner.makepyfile(test_it="import pytest\ndef test_a(): pytest.skip('no')\ndef test_b(): assert False")
    assert inner.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_outside_of_ci_any_test_may_be_skipped(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GANGWAY_CI")
    inner.makepyfile(test_it="import pytest\ndef test_a(): pytest.skip('no')")
    assert inner.runpytest_inprocess().ret == pytest.ExitCode.OK
