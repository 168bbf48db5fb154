@echo off
rem Opens the page; creates the environment first if needed. Folders of pictures may be dropped on this file.
where uv >nul 2>nul && (uv run --no-project --python 3.12 "%~dp0starter.py" %* & goto end)
where py >nul 2>nul && (py -3 "%~dp0starter.py" %* & goto end)
where python >nul 2>nul && (python "%~dp0starter.py" %* & goto end)
echo start.bat: no Python was found: install Python 3.12 from https://www.python.org, or uv from https://docs.astral.sh/uv
:end
if errorlevel 1 pause
