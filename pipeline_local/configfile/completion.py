"""Completion of the command line: scripts for shells, printed once and read by the shell.

shtab makes them of the parser. What it does not know is `key=value`: that is a function for each
shell, with all keys of the configuration and the values of those that have a few.
"""

import argparse
from collections.abc import Iterator

from pipeline_local.commandline.parser import parser
from pipeline_local.configfile import keys

SHELLS = ("bash", "zsh", "fish")
_FUNCTION = "_pipeline_local_keys"
_COMPLETE = {  # by the names of arguments, as shtab has it: functions of each shell
    "overrides": dict.fromkeys(SHELLS, _FUNCTION) | {"fish": f"({_FUNCTION})"},
    "run_folder": "directory",
    **dict.fromkeys(("config", "file", "output", "json", "data"), "file"),
}
_BASH = """
_pipeline_local_words="{words}"
{function}() {{
  # bash splits words at "=", so what stands before it is another word
  local word=$1 key=""
  if [[ $word == "=" ]]; then
    key=${{COMP_WORDS[COMP_CWORD-1]}}= word=""
  elif [[ ${{COMP_WORDS[COMP_CWORD-1]}} == "=" ]]; then
    key=${{COMP_WORDS[COMP_CWORD-2]}}=
  fi
  if [[ -n $key ]]; then
    local found
    for found in $(compgen -W "$_pipeline_local_words" -- "$key$word"); do
      [[ $found != "$key" ]] && echo "${{found#"$key"}}"
    done
  else
    compgen -W "$_pipeline_local_words" -- "$word" | sed "s/=.*/=/" | uniq
  fi
}}
"""
_BASH_END = """
# no space behind "key="
_pipeline_local() {
  _shtab_pipeline_local "$@"
  if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o bashdefault -F _pipeline_local pipeline-local
"""
_ZSH = """
{function}() {{
  local -a words=({words})
  if [[ $PREFIX == *=* ]]; then
    compadd -- ${{(M)words:#*=?*}}
  else
    compadd -S "" -- ${{(M)words:#*=}}
  fi
}}
"""
_FISH = """
function {function}
  set words {words}
  if string match -q "*=*" -- (commandline -ct)
    string match "*=?*" -- $words
  else
    string match "*=" -- $words
  end
end
"""
_PREAMBLES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """Return the script of a shell: bash, zsh or fish."""
    import shtab

    whole = parser()
    for action in _arguments(whole):
        if action.dest in _COMPLETE:
            action.complete = _COMPLETE[action.dest]  # type: ignore[attr-defined]
        elif action.dest == "key":
            action.choices = [*keys.sections(), *keys.every()]
    words = " ".join(_words())
    preamble = _PREAMBLES[shell].format(function=_FUNCTION, words=words)
    made: str = shtab.complete(whole, shell, preamble=preamble)
    if shell == "zsh":  # shtab lets an argument that may be repeated be given once
        made = made.replace('"(*)::', '"*:')
    return made + (_BASH_END if shell == "bash" else "")


def _words() -> Iterator[str]:
    """`key=` for every key, and `key=value` for every value of a few."""
    for key in keys.every().values():
        yield f"{key.name}="
        yield from (f"{key.name}={value}" for value in key.choices)


def _arguments(whole: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of every command."""
    for action in whole._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
